"""Open a recorded job from its directory alone: its runs and their settings, without data, models or checkpoints."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark, DomainData, Scenario, open_benchmark
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.plan import Job, PlannedRun, plan_job, run_folder, slug
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.jobs.variants import Variant, overridden
from fedhess.settings.run_config import RunConfig

LEVELS = 4  # from a run's directory up to its job's: STRATEGY/VARIANT/TARGET/SEED


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
        classes=tuple(dataset.get("classes") or next(iter(dataset["counts"].values()))),
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
    if not all("arguments" in variant for variant in variants):
        raise UsageError(
            "its variants have no arguments, as earlier versions wrote them; read it with the version that did"
        )
    runs: list[PlannedRun] = []
    for scenario, name in itertools.product(scenarios, strategies):
        numbers = [number for number, variant in enumerate(variants) if name in variant["strategies"]]
        for number, seed in itertools.product(numbers if variants else [None], recorded["seeds"]):
            folder = run_folder(path, name if len(strategies) > 1 else None, number)
            variant = {} if number is None else variants[number]["settings"]
            args = strategies[name] if number is None else variants[number]["arguments"][name]
            config = RunConfig.checked(
                overridden(recorded["settings"], variant)
                | {"sources": scenario.sources, "targets": scenario.targets, "seed": seed}
                | {"strategy": name, "strategy_args": args}
            )
            directory = RunDirectory(folder / slug(scenario.name) / str(seed))
            runs.append(PlannedRun(name, scenario, config, directory, number or 0, inner))
    return runs


def open_finished(path: Path, *, data_dir: Path | None = None, device: str = "cpu") -> Job:
    """Open the finished runs in a directory: those of a whole job, or of one strategy, target or seed of it.

    The job is planned again from its config.json, as ``--resume`` would, and the data is compared with what it was.

    Args:
        path: ``runs/NAME``, or a directory in it down to a single run's.
        data_dir: Where the data is now, if it has moved.
        device: Where the models will run.

    Returns:
        The job with the runs that are in ``path``.

    Raises:
        UsageError: There is no job, it is damaged, its data is other than it was, or a run of it is not finished.
    """
    folder = _job_folder(path)
    recorded = read_config(folder / "config.json")
    job = _plan_again(folder, recorded, data_dir=data_dir, device=device)
    was, now = recorded["dataset"], job.description["dataset"]
    unknown = not was["digest"]  # of a deployed run, whose data stayed on its nodes
    if was["title"] != now["title"] or not (unknown or was["digest"] == now["digest"]):
        raise UsageError(
            f"{folder} was trained on other data: on {was['title']} with digest {was['digest'][:12]}, found "
            f"{now['title']} with {now['digest'][:12]}; name the folder of its data with --data-dir"
        )
    inside = path.resolve()
    runs = tuple(run for run in job.runs if run.directory.path.resolve().is_relative_to(inside))
    if not runs:
        raise UsageError(f"{path} is no run of the job in {folder}; expected {folder} or a directory of its runs")
    for run in runs:
        require_finished(run)
    if len({run.variant for run in runs}) > 1:
        raise UsageError(
            f"{path} holds several settings of a strategy; name the directory of one, such as "
            f"{runs[0].directory.path.parent.parent}"
        )
    return replace(job, path=path, runs=runs)


def require_finished(run: PlannedRun) -> None:
    """Check that a run has trained all of its rounds.

    Raises:
        UsageError: It has not.
    """
    path, done = run.directory.path, run.directory.completed_round()
    if done is None:
        raise UsageError(f"{path} has no checkpoint, so there is no model to look at; train it with --resume first")
    if done < run.config.rounds:
        raise UsageError(
            f"{path} is at round {done} of {run.config.rounds}: its target may not be looked at before training has "
            "ended; finish it with --resume, or name a finished run's directory"
        )


def _job_folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"there is no directory {path}; expected one that fedhess.simulate wrote, such as runs/NAME")
    for folder in [path, *path.resolve().parents[:LEVELS]]:
        if (folder / "config.json").exists():
            return folder
    raise UsageError(f"{path} is no job's directory: there is no config.json in it or {LEVELS} levels above it")


def read_config(file: Path) -> dict[str, Any]:
    """Read a job's config.json.

    Raises:
        UsageError: It is damaged.
    """
    try:
        recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"dataset": dict, "strategies": dict, "targets": list, "seeds": list, "settings": dict}
        for key, kind in kinds.items():
            if not isinstance(recorded[key], kind) or not recorded[key]:
                raise ValueError(f"{key}: expected a {kind.__name__} with entries")
        for key in ("name", "title", "options", "digest"):
            recorded["dataset"][key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
    return recorded


def variants_of(recorded: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Return the settings that a recorded job has to select among, or none."""
    return tuple(variant["settings"] for variant in recorded.get("variants", ()))


def _plan_again(folder: Path, recorded: Mapping[str, Any], *, data_dir: Path | None, device: str) -> Job:
    dataset, settings = recorded["dataset"], dict(recorded["settings"]) | {"device": device}
    options = dict(dataset["options"])
    if data_dir is not None:
        if "data_dir" not in options:
            raise UsageError(f"--data-dir: {dataset['title']} reads no folder, got {data_dir}; leave the option out")
        options["data_dir"] = settings["data_dir"] = str(data_dir.resolve())
    if len(recorded["strategies"]) == 1:
        ((_, args),) = recorded["strategies"].items()
    else:
        args = {f"{name}.{key}": v for name, given in recorded["strategies"].items() for key, v in given.items()}
    try:
        return plan_job(
            open_benchmark(dataset["name"], options=options),
            strategies=list(recorded["strategies"]),
            strategy_args=args,
            target=",".join(recorded["targets"]),
            trials=len(recorded["seeds"]),
            overrides=settings | {"seed": min(recorded["seeds"])},
            out=folder,
            variants=variants_of(recorded),
        )
    except UsageError as error:
        raise UsageError(f"{folder} cannot be opened as it was trained: {error}") from error
