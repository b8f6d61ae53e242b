"""Plan a job: every run of its strategies, targets and trials, and the directory that records them."""

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhess.config import RunConfig, Scalar
from fedhess.domains import Benchmark, Scenario, split_indices
from fedhess.errors import UsageError, did_you_mean
from fedhess.loading import load_class, load_strategy, strategy_parameters
from fedhess.local_data import build_model
from fedhess.models import MODELS
from fedhess.optimizers import check_optimizer
from fedhess.recipes import default_settings, default_strategy_args
from fedhess.runs import RunDirectory
from fedhess.targets import choose_scenarios

MOST_TRIALS = 1000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a job.

    Attributes:
        strategy: The strategy as the user named it.
        scenario: Its sources and targets.
        config: Its settings.
        directory: Where it is recorded.
    """

    strategy: str
    scenario: Scenario
    config: RunConfig
    directory: RunDirectory


@dataclass(frozen=True)
class Job:
    """Every run that a command asks for.

    Attributes:
        benchmark: The opened benchmark.
        path: The job's directory, ``runs/NAME``.
        runs: Target by target, then strategy, then trial.
        description: What determines the results, as JSON; a resumed job must have the same.
    """

    benchmark: Benchmark
    path: Path
    runs: tuple[PlannedRun, ...]
    description: dict[str, Any] = field(repr=False)

    @property
    def slug(self) -> str:
        """The benchmark's title as a part of file names; a stand-in is named as one."""
        return slug(self.benchmark.title)

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

    Raises:
        UsageError: A name is unknown, a value is out of range, or the data cannot be read.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    model = str(overrides.get("model", benchmark.default_model))
    if model not in MODELS:
        raise UsageError(f"--model: unknown model {model!r}; {did_you_mean(model, MODELS)}")
    scenarios = choose_scenarios(benchmark, target)
    _check_names(strategies)
    args = {name: _args_for(name, strategies, strategy_args, benchmark.recipe or benchmark.name) for name in strategies}
    path = out if out is not None else Path("runs") / _new_name(benchmark, strategies)
    base = default_settings(model, benchmark=benchmark.recipe or benchmark.name) | dict(overrides)
    base |= {"model": model, "domains": benchmark.name, "stand_in_for": benchmark.stand_in_for}
    runs: list[PlannedRun] = []
    for scenario, name, trial in itertools.product(scenarios, strategies, range(trials)):
        seed = int(base.get("seed", 0)) + trial
        config = RunConfig.checked(
            base
            | {"sources": scenario.sources, "targets": scenario.targets, "strategy": name, "strategy_args": args[name]}
            | {"seed": seed, "domains_options": _options_of_trial(benchmark, trial)}
        )
        folder = path / slug(name) if len(strategies) > 1 else path
        runs.append(PlannedRun(name, scenario, config, RunDirectory(folder / slug(scenario.name) / str(seed))))
    _check_settings([run.config for run in runs])
    description = _describe(benchmark, runs, args)
    _check_splits(benchmark, runs)
    return Job(benchmark, path, tuple(runs), description)


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


def _check_settings(configs: Sequence[RunConfig]) -> None:
    """Check what no single value shows: together, and with the model."""
    first = configs[0]
    fewest = min((config.sources for config in configs), key=len)
    if first.quorum > len(fewest):
        raise UsageError(
            f"--quorum: expected at most {len(fewest)}, the number of source clients ({', '.join(fewest)}), got "
            f"{first.quorum}"
        )
    if first.device == "mps" and first.dtype == "float64":
        raise UsageError("--dtype float64: Apple's GPU has no float64; use --device cpu or --dtype float32")
    check_optimizer(first.server_optimizer, lr=first.server_lr, args=first.server_optimizer_args)
    try:
        build_model(first)
    except UsageError as error:
        raise UsageError(f"--model {first.model}: {error}") from error


def _check_splits(benchmark: Benchmark, runs: Sequence[PlannedRun]) -> None:
    """Insist that every source can hold examples out and keep some."""
    for domain in dict.fromkeys(domain for run in runs for domain in run.config.sources):
        data = benchmark.load(domain)
        for seed in sorted({run.config.seed for run in runs}):
            train, held_out = split_indices(data, holdout=benchmark.holdout, seed=seed)
            if len(train) == 0 or len(held_out) == 0:
                raise UsageError(
                    f"--domains {benchmark.name}: {domain!r} has {len(data)} examples, too few in each class to hold "
                    f"{benchmark.holdout:.0%} out for validation and train on the rest; expected at least 3 a class"
                )


def _options_of_trial(benchmark: Benchmark, trial: int) -> dict[str, Scalar]:
    """Return the benchmark's options; one that is made at random is made anew for each trial."""
    options = dict(benchmark.options)
    return options | {"seed": int(options["seed"]) + trial} if "seed" in options else options


def _args_for(name: str, strategies: Sequence[str], given: Mapping[str, Scalar], benchmark: str) -> dict[str, Scalar]:
    """Pick a strategy's arguments, and build it once so that every mistake shows before anything runs."""
    args: dict[str, Scalar] = default_strategy_args(benchmark, name)
    known = strategy_parameters(load_class(name))
    for key, value in given.items():
        owner, dot, rest = key.rpartition(".")
        if dot and owner not in strategies:
            raise UsageError(
                f"--strategy-args: {key!r} is for strategy {owner!r}, which does not run here; "
                f"{did_you_mean(owner, strategies)}"
            )
        if dot and owner == name:
            args[rest] = value
        elif not dot:
            elsewhere = any(key in strategy_parameters(load_class(other)) for other in strategies)
            if key in known or not elsewhere:
                args[key] = value
    load_strategy(name, args)
    return args


def _describe(
    benchmark: Benchmark, runs: Sequence[PlannedRun], args_by_strategy: Mapping[str, Mapping[str, Scalar]]
) -> dict[str, Any]:
    """Collect what determines a job's results, as JSON has it."""
    changing = {"sources", "targets", "strategy", "strategy_args", "seed", "domains_options"}
    settings = runs[0].config.model_dump(mode="json", exclude=changing)
    description = {
        "dataset": benchmark.identity(),
        "strategies": args_by_strategy,
        "targets": list(dict.fromkeys(run.scenario.name for run in runs)),
        "seeds": sorted({run.config.seed for run in runs}),
        "settings": settings,
    }
    as_json: dict[str, Any] = json.loads(json.dumps(description))
    return as_json
