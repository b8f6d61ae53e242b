"""Plan a job: every run of its strategies, targets and trials, and the directory that records them."""

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import resolved_args
from fedhess.alignment.server_step import is_server_setting, steps_itself
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains import Benchmark, Scenario
from fedhess.domains.scenarios import choose_scenarios, inner_scenarios
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.checks import check_partitions, check_selection, check_settings, check_splits
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.variants import Variant, args_for, overridden, strategy_args_of
from fedhess.models import MODELS, prepared_shape
from fedhess.models.execution import check_execution
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig, Scalar

MOST_TRIALS = 1000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a job.

    Attributes:
        strategy: The strategy as the user named it.
        scenario: Its sources and targets.
        config: Its settings.
        directory: Where it is recorded.
        variant: Which of the job's settings it has, by index; 0 where there is one.
        inner: Whether it is there for cross-validation alone: it leaves out a target and one of its sources as well.
    """

    strategy: str
    scenario: Scenario
    config: RunConfig
    directory: RunDirectory
    variant: int = 0
    inner: bool = False


@dataclass(frozen=True)
class Job:
    """Every run that a command asks for.

    Attributes:
        benchmark: The opened benchmark.
        path: The job's directory, ``runs/NAME``.
        runs: Target by target, then strategy, then variant, then trial; those for cross-validation alone come last.
        description: What determines the results, as JSON; a resumed job must have the same.
        variants: Settings to select among, or none.
        selection: How round and variant are selected, a key of `selection.SELECTORS`.
    """

    benchmark: Benchmark
    path: Path
    runs: tuple[PlannedRun, ...]
    description: dict[str, Any] = field(repr=False)
    variants: tuple[Variant, ...] = ()
    selection: str = DEFAULT

    @property
    def outer_runs(self) -> list[PlannedRun]:
        """The runs whose targets are reported: all but those for cross-validation."""
        return [run for run in self.runs if not run.inner]

    @property
    def differences(self) -> list[str]:
        """Where the data differs from the benchmark's complete copy, in words."""
        return list(self.description.get("dataset", {}).get("differences", []))

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order given."""
        return list(dict.fromkeys(run.strategy for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The trials' seeds, ascending."""
        return sorted({run.config.seed for run in self.runs})


def plan_job(
    benchmark: Benchmark,
    *,
    strategies: Sequence[str],
    strategy_args: Mapping[str, Scalar],
    target: str,
    trials: int,
    overrides: Mapping[str, Any],
    out: Path | None,
    variants: Sequence[Variant] = (),
    selection: str = DEFAULT,
    needs_weights: bool = True,
) -> Job:
    """Resolve defaults, plan every run, and build model, strategies and optimizer once to see that they can be.

    Args:
        benchmark: The opened benchmark.
        strategies: Names of strategies.
        strategy_args: Their arguments; ``name.key`` applies to one strategy, ``key`` to each that has it.
        target: ``"all"``, a target, several with commas, or several held out at once joined by ``+``.
        trials: Number of seeds, counted up from the run's seed.
        overrides: Settings from the command line, by their name in ``RunConfig``.
        out: The job's directory; by default a new one under ``runs/``.
        variants: Settings of every strategy to select among.
        selection: ``"source"``; or ``"lodo"``, which adds the runs that cross-validation needs.
        needs_weights: Whether the model's pretrained weights must be at hand; not where the job is only looked at.

    Raises:
        UsageError: A name is unknown, a value is out of range, or the data cannot be read.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    model = str(overrides.get("model", benchmark.default_model))
    if model not in MODELS:
        raise UsageError(f"--model: unknown model {model!r}; {did_you_mean(model, MODELS)}")
    check_selection(selection, variants, benchmark)
    outer = choose_scenarios(benchmark, target)
    inner = inner_scenarios(benchmark, outer) if selection == "lodo" else ()
    _check_names(strategies)
    path = out if out is not None else Path("runs") / _new_name(benchmark, strategies)
    recipe = benchmark.recipe or benchmark.name
    base = default_settings(model, benchmark=recipe) | dict(overrides)
    base |= {"model": model, "domains": benchmark.name, "stand_in_for": benchmark.stand_in_for}
    defaults = {name: default_strategy_args(name, model=model, benchmark=recipe) for name in strategies}
    settings = _settings_by_strategy(strategy_args, variants, base, defaults)
    runs: list[PlannedRun] = []
    for scenario, name in itertools.product((*outer, *inner), strategies):
        for (number, own), trial in itertools.product(settings[name].items(), range(trials)):
            seed = int(base.get("seed", 0)) + trial
            config = RunConfig.checked(
                own
                | {"sources": scenario.sources, "targets": scenario.targets, "strategy": name}
                | {"seed": seed, "domains_options": _options_of_trial(benchmark, trial)}
            )
            folder = run_folder(path, name if len(strategies) > 1 else None, number if variants else None)
            directory = RunDirectory(folder / slug(scenario.name) / str(seed))
            runs.append(PlannedRun(name, scenario, config, directory, number, scenario in inner))
    check_settings([run.config for run in runs], needs_weights=needs_weights)
    check_execution(runs[0].config, prepared_shape(model, benchmark.input_shape))
    description = describe(benchmark.identity(), [run for run in runs if not run.inner], variants)
    check_splits(benchmark, [run.config for run in runs])
    check_partitions(benchmark, [run.config for run in runs])
    return Job(benchmark, path, tuple(runs), description, tuple(variants), selection)


def run_folder(path: Path, strategy: str | None, variant: int | None) -> Path:
    """Name the directory above a run's target: one a strategy where a job has several, then one a variant.

    >>> run_folder(Path("runs/NAME"), "hgp", 3).as_posix()
    'runs/NAME/hgp/variant-3'
    """
    folder = path if strategy is None else path / slug(strategy)
    return folder if variant is None else folder / f"variant-{variant}"


def _settings_by_strategy(
    given: Mapping[str, Scalar],
    variants: Sequence[Variant],
    base: Mapping[str, Any],
    defaults: Mapping[str, Mapping[str, Scalar]],
) -> dict[str, dict[int, dict[str, Any]]]:
    """Resolve the settings of each strategy and of each of its variants, by index.

    A variant that makes no difference to a strategy (another method's argument; a setting of the server, to a plain
    Flower strategy) is run once, under the first index.
    """
    settings: dict[str, dict[int, dict[str, Any]]] = {}
    strategies = list(defaults)
    for name in strategies:
        settings[name] = {}
        for number, variant in enumerate(variants or ({},)):
            own_args = strategy_args_of(variant)
            fixed = {key: value for key, value in given.items() if key not in own_args}
            varied = args_for(name, strategies, fixed | own_args, defaults[name])
            felt = {key: value for key, value in variant.items() if not (is_server_setting(key) and steps_itself(name))}
            own = overridden(base, felt) | {"strategy_args": varied}
            if own not in settings[name].values():
                settings[name][number] = own
    return settings


def slug(text: str) -> str:
    """Turn a title into a part of a file name.

    >>> slug("IconPACS (stand-in for PACS)")
    'IconPACS-stand-in-for-PACS'
    """
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def _new_name(benchmark: Benchmark, strategies: Sequence[str]) -> str:
    names = "-".join(map(slug, strategies))
    return f"{slug(benchmark.title)}_{names}_{time.strftime('%Y%m%d-%H%M%S')}"


def _check_names(strategies: Sequence[str]) -> None:
    if not strategies:
        raise UsageError("--strategy: expected a strategy, or several separated by commas; got nothing")
    by_folder: dict[str, str] = {}
    for name in strategies:
        if name in by_folder.values():
            raise UsageError(f"--strategy: {name!r} is given twice; name each strategy once")
        folder = slug(name).lower()
        if folder in by_folder:
            raise UsageError(
                f"--strategy: {by_folder[folder]!r} and {name!r} would share the directory {slug(name)!r}; run each in "
                "a job of its own"
            )
        by_folder[folder] = name


def _options_of_trial(benchmark: Benchmark, trial: int) -> dict[str, Scalar]:
    """Return the benchmark's options; one that is made at random is made anew for each trial."""
    options = dict(benchmark.options)
    return options | {"seed": int(options["seed"]) + trial} if "seed" in options else options


def _common(resolved: Mapping[int, Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Return the arguments that all of a strategy's variants have alike."""
    first, *others = resolved.values()
    return {key: value for key, value in first.items() if all(of.get(key) == value for of in others)}


def describe(
    dataset: Mapping[str, Any], runs: Sequence[PlannedRun], variants: Sequence[Variant] = ()
) -> dict[str, Any]:
    """Collect what determines a job's results, as JSON has it; runs for cross-validation may come later or never."""
    changing = {"sources", "targets", "strategy", "strategy_args", "seed", "domains_options"}
    settings = runs[0].config.model_dump(mode="json", exclude=changing)
    resolved: dict[str, dict[int, dict[str, Scalar]]] = {}
    for run in runs:
        of = resolved.setdefault(run.strategy, {})
        if run.variant not in of:
            of[run.variant] = resolved_args(run.strategy, run.config.strategy_args)
    description = {
        "dataset": dataset,
        "strategies": {name: _common(resolved[name]) for name in resolved},
        "targets": list(dict.fromkeys(run.scenario.name for run in runs)),
        "seeds": sorted({run.config.seed for run in runs}),
        "settings": settings,
        "variants": [
            {
                "settings": variant,
                "strategies": sorted({run.strategy for run in runs if run.variant == number}),
                "arguments": {name: of[number] for name, of in resolved.items() if number in of},
            }
            for number, variant in enumerate(variants)
        ],
    }
    as_json: dict[str, Any] = json.loads(json.dumps(description))
    return as_json
