"""Open a recorded job from its directory: its runs and their settings, without models or checkpoints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.base.errors import StorageError, UsageError
from fedhess.domains import open_benchmark
from fedhess.jobs.job import Job, PlannedRun, make_job, with_defaults
from fedhess.jobs.selectors import DEFAULT, SELECTORS

LEVELS = 4  # from a run's directory up to its job's: STRATEGY/VARIANT/TARGET/SEED


def open_recorded(path: Path, *, inner: bool = False) -> Job:
    """Open the job in a directory, finished or not; its training data is not needed.

    Runs for cross-validation are included if they have rows.

    Args:
        path: ``runs/NAME``.
        inner: Whether to include the cross-validation runs that the job is yet to run as well.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UsageError(f"{path} is no job's directory: expected one that fedhess.simulate wrote, with a config.json")
    job = _job(path, read_config(file))
    wanted = inner and job.selection == "lodo"
    runs = (run for run in job.runs if wanted or not run.inner or run.directory.rounds_file.exists())
    return replace(job, runs=tuple(runs))


def _job(path: Path, recorded: dict[str, Any]) -> Job:
    """Make the recorded job, with every run that cross-validation would need."""
    file, selection = path / "config.json", recorded.get("selection", DEFAULT)
    if not all("arguments" in variant for variant in recorded.get("variants", ())):
        raise UsageError(
            f"{file} cannot be read as it was written: its variants have no arguments, as earlier versions wrote them; "
            "read it with the version that did"
        )
    try:
        if selection not in SELECTORS or selection == "oracle":
            raise ValueError(f"selection: got {selection!r}")
        return make_job(path, recorded, inner=True, selection=selection)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
    except UsageError as error:
        raise UsageError(f"{file} cannot be read as it was written: {error}") from error


def require_inner_runs(job: Job) -> None:
    """Check that every run that cross-validation needs has rows."""
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
                    f"{' and '.join(sorted(left_out))} (seed {run.config.seed}); add what is missing: "
                    f"fedhess {'sweep' if job.search else 'simulate'} --out {job.path} --resume --selection lodo"
                )


def open_finished(path: Path, *, data_dir: Path | None = None, device: str = "cpu") -> Job:
    """Open the finished runs in a directory: those of a whole job, or of one strategy, setting, target or seed of it.

    Args:
        path: ``runs/NAME``, or a directory inside it, down to that of a single run.
        data_dir: Where the data is now, if it has moved.
        device: Where the models will run.

    Returns:
        The job with the runs in ``path`` and the cross-validation runs that belong to them.
    """
    folder = _job_folder(path)
    recorded = read_config(folder / "config.json")
    _check_data(folder, recorded, data_dir)
    recorded["settings"]["device"] = device
    job = _within(path, _job(folder, recorded))
    several = len({run.variant for run in job.outer_runs}) > 1
    for run in job.outer_runs:
        if not several or run.directory.failure() is None:  # of several settings some may have failed
            require_finished(run)
    return job


def open_runs(path: Path) -> Job:
    """Open the runs in a directory, finished or not: of a whole job, or of a part of it down to a single run.

    Their training data is not needed. Their cross-validation runs are included if they have rows.
    """
    folder = _job_folder(path)
    return _within(path, _job(folder, read_config(folder / "config.json")))


def _within(path: Path, job: Job) -> Job:
    inside = path.resolve()
    runs = [run for run in job.outer_runs if run.directory.path.resolve().is_relative_to(inside)]
    if not runs:
        raise UsageError(f"{path} is no run of the job in {job.path}; expected {job.path} or a directory of its runs")
    return replace(with_inner_runs(job, runs), path=path)


def with_inner_runs(job: Job, runs: Sequence[PlannedRun]) -> Job:
    """Reduce a job to some of its outer runs and to those of their cross-validation runs that have rows."""
    groups = [(run.strategy, run.variant, run.config.seed, set(run.scenario.targets)) for run in runs]
    inner = [
        run
        for run in job.runs
        if run.inner
        and run.directory.rounds_file.exists()
        and any(
            (run.strategy, run.variant, run.config.seed) == tuple(group) and left_out < set(run.scenario.targets)
            for *group, left_out in groups
        )
    ]
    return replace(job, runs=(*runs, *inner))


def _check_data(folder: Path, recorded: dict[str, Any], data_dir: Path | None) -> None:
    """Check that the data is what a job was trained on; ``data_dir`` is its folder if it has moved."""
    was = recorded["dataset"]
    moved = moved_to(data_dir, was["title"], was["options"])
    was["options"] |= moved
    recorded["settings"] |= moved
    try:
        now = open_benchmark(was["name"], options=was["options"]).identity()
    except UsageError as error:
        raise UsageError(f"{folder} cannot be opened as it was trained: {error}") from error
    unknown = not was["digest"]  # of a deployed run, whose data stayed on its nodes
    require_same_data(folder, was, now | ({"digest": ""} if unknown else {}))


def moved_to(data_dir: Path | None, title: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the data option that names the folder, if ``--data-dir`` is given."""
    if data_dir is None:
        return {}
    if "data_dir" not in options:
        raise UsageError(f"--data-dir: {title} reads no folder, got {data_dir}; leave the option out")
    return {"data_dir": str(data_dir.resolve())}


def require_same_data(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check by title and digest that data is what the job in a directory was trained on."""
    if was["title"] != now["title"] or was["digest"] != now["digest"]:
        raise UsageError(
            f"{folder} was trained on other data: on {was['title']} with digest {was['digest'][:12]}, found "
            f"{now['title']} with {str(now['digest'])[:12]}; name the folder of its data with --data-dir"
        )


def require_finished(run: PlannedRun) -> None:
    """Check that a run has trained all of its rounds."""
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
    """Read a job's config.json, and check that it has the entries that describe the job."""
    try:
        recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"dataset": dict, "strategies": dict, "targets": list, "seeds": list, "settings": dict}
        for key, kind in kinds.items():
            if not isinstance(recorded[key], kind) or not recorded[key]:
                raise ValueError(f"{key}: expected a {kind.__name__} with entries")
        for key in ("name", "title", "options", "digest"):
            recorded["dataset"][key]
        return with_defaults(recorded)
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}; check the disk or permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
