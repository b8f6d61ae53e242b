"""A job and its runs, made from the job's record, which is its config.json.

Jobs are made here both from a new record (``fedhess.simulate``, a deployed run) and from one that was read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedhess.base.loading import installed
from fedhess.domains import Benchmark, Scenario
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.variants import Variant, overridden
from fedhess.settings.assignments import Scalar
from fedhess.settings.combined import PLUS
from fedhess.settings.run_config import RunConfig
from fedhess.settings.schedules import current_settings

# Fields that differ between the runs of a job and are not among its settings.
OF_A_RUN = {"sources", "targets", "strategy", "strategy_args", "seed", "domains_options"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a job."""

    strategy: str  # the strategy as the user named it
    scenario: Scenario  # its sources and targets
    config: RunConfig  # its settings
    directory: RunDirectory  # where it is recorded
    variant: int = 0  # index of its setting among the job's; 0 if the job has one setting
    number: int = 0  # the variant's number in directory names and tables: a sweep's setting number, else the index
    # Whether the run serves cross-validation alone: it leaves out a target and one of its sources as well
    inner: bool = False


@dataclass(frozen=True)
class Job:
    """Every run that a command asks for."""

    path: Path  # the job's directory, runs/NAME
    # Ordered by target, strategy, variant and trial; runs for cross-validation alone come last
    runs: tuple[PlannedRun, ...]
    # What determines the results, as JSON; a resumed job must have the same
    record: Mapping[str, Any] = field(repr=False)
    selection: str = DEFAULT  # how round and variant are selected, a key of `selectors.SELECTORS`
    benchmark: Benchmark | None = field(default=None, repr=False)  # its opened data, if the job is about to run
    # The record of the job in ``path``, if this job continues or adds to it
    before: Mapping[str, Any] | None = field(default=None, repr=False)
    trackers: tuple[str, ...] = ()  # keys of `tracking.TRACKERS` that receive its rows
    # The lock on ``path``, held since ``before`` was read and released when the job has run
    lock: FileLock | None = field(default=None, repr=False, compare=False)
    resume_from: int | None = None  # the round that its runs go back to, if any

    @property
    def data(self) -> Mapping[str, Any]:
        """What is known of the data: ``name``, ``title``, ``stand_in_for``, ``options``, ``counts``, ``digest``."""
        found: Mapping[str, Any] = self.record["dataset"]
        return found

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.data.get("classes") or next(iter(self.data["counts"].values())))

    @property
    def variants(self) -> list[Variant]:
        """The settings to select among, or none."""
        return [variant["settings"] for variant in self.record.get("variants", ())]

    @property
    def search(self) -> Mapping[str, Any]:
        """How a sweep's settings are chosen, see :func:`fedhess.jobs.search.plan_search`; empty for other jobs."""
        found: Mapping[str, Any] = self.record.get("search", {})
        return found

    @property
    def draws(self) -> Mapping[str, int]:
        """Number of settings for each target and trial, by strategy, if Optuna suggests them one by one; else empty."""
        if self.search.get("kind") != "optuna":
            of_merged: Mapping[str, int] = self.record.get("draws", {})
            return of_merged
        return {name: self.search["draws"] for name, space in self.search["spaces"].items() if space}

    @property
    def settings_each(self) -> str:
        """Maximum number of settings each strategy, target and seed selects among: ``4``, or ``2 (erm), 6 (hgp)``."""
        numbers: dict[str, set[int]] = {}
        for index, each in enumerate(self.record.get("variants", ())):
            for name in each["strategies"]:
                numbers.setdefault(name, set()).add(variant_number(index, each))
        counts = {name: len(found) for name, found in numbers.items()}
        several = len(set(counts.values())) > 1
        return (
            ", ".join(f"{n} ({name.partition(' ')[0]})" for name, n in counts.items())
            if several
            else str(max(counts.values(), default=0))
        )

    @property
    def outer_runs(self) -> list[PlannedRun]:
        """The runs whose targets are reported: all but those for cross-validation."""
        return [run for run in self.runs if not run.inner]

    @property
    def differences(self) -> list[str]:
        """Where the data differs from the benchmark's complete copy, in words."""
        return list(self.data.get("differences", []))

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order given."""
        return list(dict.fromkeys(run.strategy for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The trials' seeds, ascending."""
        return sorted({run.config.seed for run in self.runs})


def outline(benchmark: Benchmark) -> dict[str, Any]:
    """Return what is known of a benchmark before its data is read, in the form of ``Benchmark.identity``."""
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "stand_in_for": benchmark.stand_in_for,
        "classes": list(benchmark.classes),
        "options": dict(benchmark.options),
        "digest": "",
        "counts": {domain: {} for domain in benchmark.domains},
    }


def make_record(
    dataset: Mapping[str, Any],
    config: RunConfig,
    *,
    strategies: Mapping[str, Mapping[str, Scalar]],
    targets: Sequence[str],
    seeds: Sequence[int],
    variants: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect what determines a job's results, as JSON.

    Args:
        dataset: From ``Benchmark.identity`` or :func:`outline`.
        config: The settings of any run; only settings that all runs share are used.
        strategies: By strategy name, the arguments that all of its runs share, defaults included.
        targets: Names of scenarios.
        seeds: Seeds of the trials.
        variants: Each has ``settings``, the ``strategies`` that run it, and the ``arguments`` of each strategy. A
            sweep's variants also have a ``number``, and may be limited to certain ``seeds`` and ``targets``.
        search: For a sweep, how its variants are chosen.
    """
    record = {
        "dataset": dataset,
        "strategies": strategies,
        "targets": targets,
        "seeds": seeds,
        "settings": config.model_dump(mode="json", exclude=OF_A_RUN),
        "variants": variants,
        **({"search": search} if search else {}),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(record))
    return as_json


def with_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a record that an earlier version wrote: settings newer than the record get their defaults."""
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in OF_A_RUN}
    defaults = {name: field.default for name, field in fields.items() if not field.is_required()}
    settings = {"settings": defaults | current_settings(record["settings"])} if "settings" in record else {}
    return {"variants": [], **record, **settings}


def make_job(
    path: Path,
    record: Mapping[str, Any],
    *,
    inner: bool,
    selection: str = DEFAULT,
    benchmark: Benchmark | None = None,
) -> Job:
    """Make the job of a record; nothing is read or written.

    Args:
        path: The job's directory.
        record: From :func:`make_record`, or a config.json.
        inner: Whether to include the runs that cross-validation needs.
        selection: A key of `selectors.SELECTORS`.
        benchmark: The job's data, if it is about to run.
    """
    domains = tuple(record["dataset"]["counts"])
    outer = [_scenario(domains, name.split("+")) for name in record["targets"]]
    more = [_scenario(domains, (*each.targets, source)) for each in outer for source in each.sources] if inner else []
    scenarios = dict.fromkeys([*outer, *more])
    runs = [
        PlannedRun(strategy, scenario, config, directory, index, number, scenario not in outer)
        for scenario in scenarios
        for strategy in record["strategies"]
        for index, number, config, directory in _runs(path, record, strategy, scenario)
    ]
    return Job(path, tuple(runs), record, selection, benchmark)


def _scenario(domains: Sequence[str], targets: Iterable[str]) -> Scenario:
    held_out = set(targets)
    named = tuple(domain for domain in domains if domain in held_out)
    return Scenario(tuple(domain for domain in domains if domain not in held_out), named, "+".join(named))


def _runs(
    path: Path, record: Mapping[str, Any], strategy: str, scenario: Scenario
) -> Iterable[tuple[int, int, RunConfig, RunDirectory]]:
    """Make the runs of one strategy on one scenario: index and number of the variant, settings, directory."""
    variants, options = record.get("variants", ()), record["dataset"]["options"]
    above = path / strategy_folders(record).get(strategy, slug(strategy))
    first_seed = record["seeds"][0]  # an added seed may be lower
    for index, variant in enumerate(variants or [{}]):
        targets = variant.get("targets", [scenario.name])
        if variants and not (strategy in variant["strategies"] and scenario.name in targets):
            continue
        args, settings, folder = record["strategies"][strategy], record["settings"], above
        number = variant_number(index, variant)
        if variants:
            args, settings = variant["arguments"][strategy], overridden(settings, variant["settings"], strategy)
            folder = above / variant.get("folder", f"variant-{number}")
        for seed in variant.get("seeds", record["seeds"]):
            # A randomly generated benchmark is generated anew for each trial.
            made = {"seed": int(options["seed"]) + seed - first_seed} if "seed" in options else {}
            config = RunConfig.checked(
                {**settings, "sources": scenario.sources, "targets": scenario.targets, "seed": seed}
                | {"strategy": strategy, "strategy_args": args, "domains_options": options | made}
            )
            yield index, number, config, RunDirectory(folder / slug(scenario.name) / str(seed))


def own_code(record: Mapping[str, Any]) -> list[str]:
    """List the user code that a job runs, as ``package.module:Name``, including code of installed entry points."""
    names = {
        "strategies": [part for strategy in record.get("strategies", ()) for part in strategy.split(PLUS)],
        "models": [str(record.get("settings", {}).get("model", ""))],
        "benchmarks": [str(record.get("dataset", {}).get("name", ""))],
    }
    paths = [installed(f"fedhess.{group}").get(name, name) for group, several in names.items() for name in several]
    return [path for path in dict.fromkeys(paths) if ":" in path and not path.startswith("timm:")]


def variant_number(index: int, variant: Mapping[str, Any]) -> int:
    """Return the number in the names of a variant's directories: a sweep's own number, else its index in the record."""
    return int(variant.get("number", index))


def strategy_folders(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the folders, relative to the job's, of strategies whose folder is not named after them.

    A job's only strategy has no folder of its own, even after others are added. The same holds for its only setting.

    >>> strategy_folders({"strategies": {"hgp": {}}})
    {'hgp': ''}
    """
    only = len(record["strategies"]) == 1
    return dict(record.get("folders") or (dict.fromkeys(record["strategies"], "") if only else {}))


def history(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how a job was made, from the first command on: entries with ``command`` and ``environment``."""
    begun = {key: record[key] for key in ("command", "environment") if key in record}
    return [*([begun] if "command" in begun else []), *record.get("additions", ())]


def slug(text: str) -> str:
    """Turn a title into a part of a file name.

    >>> slug("IconPACS (stand-in for PACS)")
    'IconPACS-stand-in-for-PACS'
    """
    return re.sub(r"[^\w.+]+", "-", text).strip("-")
