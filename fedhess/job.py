"""Plan a job: every run of its strategies, targets and trials, and the directory that records them."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedhess.config import RunConfig, Scalar
from fedhess.domains import Benchmark, Scenario
from fedhess.errors import UsageError, did_you_mean
from fedhess.loading import load_class, load_strategy, strategy_parameters
from fedhess.models import MODELS
from fedhess.recipes import default_settings, default_strategy_args
from fedhess.runs import RunDirectory


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

    def begin(self, *, resume: bool) -> None:
        """Make the job's directory and write config.json, or check that a resumed one was made alike.

        Raises:
            UsageError: The directory is in use, cannot be written, or was made with another configuration.
        """
        config_file = self.path / "config.json"
        if resume:
            _check_same(config_file, self.description)
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(
                f"--out: {self.path} is already used; choose another directory, or add --resume to continue what is there"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            record = {**self.description, "environment": environment()}
            config_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--out: cannot write to {self.path}: {error.strerror}; choose another directory"
            ) from None


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
    """Resolve defaults and plan every run.

    Args:
        benchmark: The opened benchmark.
        strategies: Names of strategies.
        strategy_args: Their arguments; ``name.key`` applies to one strategy, ``key`` to each that has it.
        target: ``"all"``, a target, several with commas, or several held out at once joined by ``+``.
        trials: Number of seeds, counted up from the run's seed.
        overrides: Settings from the command line, by their name in ``RunConfig``.
        out: The job's directory; by default a new one under ``runs/``.

    Raises:
        UsageError: A name is unknown or a value is out of range.
    """
    if trials < 1:
        raise UsageError(f"--trials: expected at least 1, got {trials}")
    model = str(overrides.get("model") or benchmark.default_model)
    if model not in MODELS:
        raise UsageError(f"--model: unknown model {model!r}; {did_you_mean(model, MODELS)}")
    scenarios = choose_scenarios(benchmark, target)
    args_by_strategy = {name: _args_for(name, strategies, strategy_args, benchmark.name) for name in strategies}
    base = default_settings(model) | dict(overrides) | {"model": model, "stand_in_for": benchmark.stand_in_for}
    base["domains"] = benchmark.name
    path = (
        out if out is not None else Path("runs") / f"{slug(benchmark.title)}_{'-'.join(map(slug, strategies))}_{_now()}"
    )
    runs: list[PlannedRun] = []
    for scenario in scenarios:
        for name in strategies:
            for trial in range(trials):
                seed = int(base.get("seed", 0)) + trial
                changes = {"strategy": name, "strategy_args": args_by_strategy[name], "seed": seed}
                changes["domains_options"] = _options_of_trial(benchmark, trial)
                config = RunConfig.checked(base | changes | {"sources": scenario.sources, "targets": scenario.targets})
                directory = RunDirectory(path / slug(name) / slug(scenario.name) / str(seed))
                runs.append(PlannedRun(name, scenario, config, directory))
    description = {
        "dataset": benchmark.identity(),
        "strategies": args_by_strategy,
        "targets": [scenario.name for scenario in scenarios],
        "seeds": sorted({run.config.seed for run in runs}),
        "settings": _common_settings(runs[0].config),
    }
    return Job(benchmark, path, tuple(runs), description)


def choose_scenarios(benchmark: Benchmark, target: str) -> tuple[Scenario, ...]:
    """Turn ``--target`` into scenarios.

    Raises:
        UsageError: A target is unknown, or fewer than two sources are left.
    """
    if target == "all":
        return benchmark.scenarios
    fixed = {scenario.name: scenario for scenario in benchmark.scenarios}
    chosen: list[Scenario] = []
    for name in filter(None, (part.strip() for part in target.split(","))):
        if name in fixed:
            chosen.append(fixed[name])
            continue
        held_out = tuple(part.strip() for part in name.split("+"))
        for part in held_out:
            if part not in benchmark.domains or len(fixed) == 1:
                raise UsageError(
                    f"--target: {benchmark.title} has no target {part!r}; {did_you_mean(part, fixed)}, or all"
                )
        sources = tuple(domain for domain in benchmark.domains if domain not in held_out)
        chosen.append(Scenario(sources, tuple(d for d in benchmark.domains if d in held_out), name))
    if not chosen:
        raise UsageError("--target: expected a target, several separated by commas, or all; got nothing")
    for scenario in chosen:
        if len(scenario.sources) < 2:
            raise UsageError(
                f"--target {scenario.name}: leaves {len(scenario.sources)} source domain(s) of {benchmark.title}; "
                "aligning domains needs at least two"
            )
    return tuple(chosen)


def resolve_device(name: str) -> str:
    """Turn ``--device`` into a device that is there.

    Raises:
        UsageError: The device is unknown or absent.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match.group(1) or 0) >= count:
            raise UsageError(f"--device {name}: torch sees {count} CUDA device(s); use --device auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Apple GPU; use --device auto or cpu")
    return name


def environment() -> dict[str, Any]:
    """Describe what a run ran on: versions, revision, machine."""
    packages = ("fedhess", "flwr", "torch", "torchvision", "numpy")
    return {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "git_revision": _git_revision(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def slug(text: str) -> str:
    """Turn a title into a part of a file name.

    >>> slug("IconPACS (stand-in for PACS)")
    'IconPACS-stand-in-for-PACS'
    """
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", text).strip("-")


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
            raise UsageError(f"--strategy-args: {key!r} is for strategy {owner!r}, which does not run here")
        if dot and owner == name:
            args[rest] = value
        elif not dot:
            elsewhere = any(key in strategy_parameters(load_class(other)) for other in strategies)
            if key in known or not elsewhere:
                args[key] = value
    load_strategy(name, args)
    return args


def _common_settings(config: RunConfig) -> dict[str, Any]:
    changing = {"sources", "targets", "strategy", "strategy_args", "seed", "domains_options"}
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in changing}


def _check_same(config_file: Path, description: Mapping[str, Any]) -> None:
    if not config_file.exists():
        raise UsageError(f"--resume: there is no {config_file}; give --out the directory of the job to continue")
    recorded = json.loads(config_file.read_text(encoding="utf-8"))
    before, now = _flat({key: recorded.get(key) for key in description}), _flat(dict(description))
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        lines = "".join(f"\n  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in different)
        raise UsageError(f"--resume: {config_file.parent} was made with another configuration:{lines}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return result


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
