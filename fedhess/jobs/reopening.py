"""Open a recorded job from its directory alone: its runs and their settings, without data, models or checkpoints."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark, DomainData, Scenario
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.plan import Job, PlannedRun, run_folder, slug
from fedhess.jobs.variants import overridden, strategy_args_of
from fedhess.results.domain_views import read_config, variants_of
from fedhess.results.selection import DEFAULT, SELECTORS
from fedhess.settings.run_config import RunConfig


def open_recorded(path: Path) -> Job:
    """Open the job in a directory, finished or not; what it trained on is not needed.

    Runs for cross-validation are part of it where they have rows.

    Args:
        path: ``runs/NAME``.

    Raises:
        UsageError: There is no job, or its config.json is damaged or of another version.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UsageError(f"{path} is no job's directory: expected one that fedhess.simulate wrote, with a config.json")
    recorded = read_config(file)
    try:
        benchmark = _benchmark(recorded)
        outer = [_scenario(benchmark, name) for name in recorded["targets"]]
        inner = _runs(path, recorded, _inner(benchmark, outer), inner=True)
        runs = _runs(path, recorded, outer, inner=False)
        selection = _selection(recorded)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
    except UsageError as error:
        raise UsageError(f"{file} cannot be read as it was written: {error}") from error
    kept = [run for run in inner if run.directory.rounds_file.exists()]
    return Job(benchmark, path, (*runs, *kept), recorded, variants_of(recorded), selection)


def require_inner_runs(job: Job) -> None:
    """Check that every run that cross-validation needs has rows.

    Raises:
        UsageError: One has none, or there can be none; the message says what to do.
    """
    there = {(run.strategy, run.variant, frozenset(run.config.targets), run.config.seed) for run in job.runs}
    for run in job.outer_runs:
        if len(run.scenario.sources) < 3:
            raise UsageError(
                f"--selection lodo: expected at least three sources for target {run.scenario.name}, so that two are "
                f"left to align, got {', '.join(run.scenario.sources)}; use --selection source,oracle"
            )
        for source in run.scenario.sources:
            left_out = frozenset({*run.scenario.targets, source})
            if (run.strategy, run.variant, left_out, run.config.seed) not in there:
                raise UsageError(
                    f"--selection lodo: {job.path} has no run of {run.strategy} without "
                    f"{' and '.join(sorted(left_out))} (seed {run.config.seed}); add what is missing by giving "
                    f"fedhess.simulate the job's options again, with --selection lodo --resume --out {job.path}"
                )


def _selection(recorded: dict[str, Any]) -> str:
    """Give the selector that the job itself reports by; jobs of before it was recorded have the default."""
    selection = recorded.get("selection", DEFAULT)
    if selection not in SELECTORS or selection == "oracle":
        raise ValueError(f"selection: got {selection!r}")
    return str(selection)


def _benchmark(recorded: dict[str, Any]) -> Benchmark:
    dataset = recorded["dataset"]
    domains = tuple(dataset["counts"])
    return Benchmark(
        name=dataset["name"],
        domains=domains,
        classes=tuple(next(iter(dataset["counts"].values()))),
        input_shape=(),
        outputs=0,
        default_model=recorded["settings"]["model"],
        scenarios=(),
        loader=_no_data,
        stand_in_for=dataset["stand_in_for"],
        options=dataset["options"],
    )


def _no_data(domain: str) -> DomainData:
    raise AssertionError(f"a recorded job has no data, asked for {domain}")


def _scenario(benchmark: Benchmark, name: str) -> Scenario:
    targets = tuple(name.split("+"))
    return Scenario(tuple(domain for domain in benchmark.domains if domain not in targets), targets, name)


def _inner(benchmark: Benchmark, outer: Sequence[Scenario]) -> list[Scenario]:
    """List what cross-validation of these scenarios leaves out, as `targets.inner_scenarios` does."""
    pairs = [{*scenario.targets, source} for scenario in outer for source in scenario.sources]
    names = ["+".join(domain for domain in benchmark.domains if domain in pair) for pair in pairs]
    return [_scenario(benchmark, name) for name in dict.fromkeys(names) if name not in {each.name for each in outer}]


def _runs(path: Path, recorded: dict[str, Any], scenarios: Sequence[Scenario], *, inner: bool) -> list[PlannedRun]:
    strategies, variants = recorded["strategies"], recorded.get("variants", [])
    runs: list[PlannedRun] = []
    for scenario, name in itertools.product(scenarios, strategies):
        numbers = [number for number, variant in enumerate(variants) if name in variant["strategies"]]
        for number, seed in itertools.product(numbers if variants else [None], recorded["seeds"]):
            folder = run_folder(path, name if len(strategies) > 1 else None, number)
            variant = {} if number is None else variants[number]["settings"]
            varied = {key.removeprefix(f"{name}."): value for key, value in strategy_args_of(variant).items()}
            args = strategies[name] | {key: value for key, value in varied.items() if key in strategies[name]}
            config = RunConfig.checked(
                overridden(recorded["settings"], variant)
                | {"sources": scenario.sources, "targets": scenario.targets, "seed": seed}
                | {"strategy": name, "strategy_args": args}
            )
            directory = RunDirectory(folder / slug(scenario.name) / str(seed))
            runs.append(PlannedRun(name, scenario, config, directory, number or 0, inner))
    return runs
