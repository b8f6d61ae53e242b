"""Run every incomplete run of a job."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from fedhess.alignment.server_step import require_server
from fedhess.base.environment import torch_threads
from fedhess.base.errors import FederationError, StrategyError, UsageError
from fedhess.cli.options import JobOptions, read_options
from fedhess.domains import Benchmark, open_benchmark
from fedhess.domains.images.image_files import limit_pixels
from fedhess.domains.images.pixels import require_room
from fedhess.federation.client.memory import MEMORY
from fedhess.federation.engines.choice import IN_PROCESS, Engine
from fedhess.jobs.description import (
    describe_failures,
    describe_setting,
    header,
    incomplete_warning,
    name_run,
    stand_in_warning,
)
from fedhess.jobs.directory import hold, is_held, require_begun, require_unused
from fedhess.jobs.growing import complete_options, describe_growth, open_again, read_begun
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.parallel import run_side_by_side
from fedhess.jobs.plan import plan_job
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import moved_to
from fedhess.jobs.search import read_search
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.tracking import STATE, Tracking, read_trackers
from fedhess.jobs.variants import parse_variants
from fedhess.jobs.workers.choice import SideBySide, choose_place
from fedhess.jobs.workers.worker import alone_in, run_to_end
from fedhess.models import keeps_images, prepare_inputs
from fedhess.models.prepared import share_loaded
from fedhess.settings.assignments import parse_assignments
from fedhess.settings.run_config import MAX_PIXELS, RunConfig

_DIGESTS: dict[str, str] = {}  # of the data of this process's jobs, by benchmark, options and folder


def open_job(
    given: Mapping[str, Any],
    progress: Progress,
    *,
    search: Mapping[str, Any] | None = None,
    needs_weights: bool = True,
) -> tuple[Job, Engine]:
    """Open the data, and plan the job that options describe.

    A job that is continued or added to is locked from here until it has run. If another process runs the job, an
    addition waits until that process ends.

    Args:
        given: Options of ``fedhess.simulate`` by their names, as :func:`fedhess.cli.options.read_options` reads them.
        progress: Where stand-ins, downloads and missing data are reported.
        search: Options specific to a sweep, as :meth:`fedhess.jobs.search.Search.read` reads them.
        needs_weights: Whether the model's pretrained weights must be available; False if the job is only inspected.

    Returns:
        The job, and the engine that runs its clients.
    """
    options, _ = read_options(given)
    lock, trackers = None, read_trackers(options.track)
    if options.continuing:
        path = require_begun(options.out, options.continuing)
        if options.add and is_held(path):
            _plan(given, progress, search, needs_weights=needs_weights)  # so that a mistake shows before the wait
        lock = hold(path, wait=progress.note if options.add else None)
    elif options.out is not None:
        require_unused(options.out)  # before any download
    try:
        job, engine = _plan(given, progress, search, needs_weights=needs_weights)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    if job.before is not None and given.get("track") is None:
        trackers = tuple(job.before.get("trackers", ()))
    if growth := describe_growth(job):
        progress.note(f"added to the job in {job.path}: {growth}\n")
    progress.warn(stand_in_warning(job))
    progress.warn(incomplete_warning(job))
    return replace(job, trackers=trackers, lock=lock, resume_from=options.resume_from), engine


def _plan(
    given: Mapping[str, Any], progress: Progress, search: Mapping[str, Any] | None, *, needs_weights: bool
) -> tuple[Job, Engine]:
    options, settings = read_options(given)
    recorded = read_begun(options) if options.continuing else None
    asked = read_search(search, recorded, options)
    if "local_steps" in settings and settings.get("local_epochs"):
        raise UsageError(
            f"--local-epochs {settings['local_epochs']}: --local-steps {settings['local_steps']} is given too; give "
            "one of them"
        )
    engine = choose_place(options)
    before = {"device": "auto", "max_pixels": MAX_PIXELS} if recorded is None else recorded["settings"]
    limit_pixels(settings.get("max_pixels", before["max_pixels"]))
    if recorded is None:
        settings["device"] = engine.device(settings.get("device", before["device"]))
        benchmark, planned = _new_job(options, settings, progress)
        planned["threads"] = engine.workers.threads() if isinstance(engine, SideBySide) else 0
    else:
        benchmark = open_again(recorded, options, given, progress.note)
        planned = complete_options(recorded, benchmark, options, given, settings)
        planned["overrides"]["device"] = engine.device(planned["overrides"]["device"])  # may be another engine's
        require_server(planned["strategies"], settings, planned["variants"])
    selection = options.selection or (recorded or {}).get("selection", DEFAULT)
    job = plan_job(
        benchmark, **planned, out=options.out, selection=selection, search=asked, needs_weights=needs_weights
    )
    return job, engine


def _new_job(options: JobOptions, settings: dict[str, Any], progress: Progress) -> tuple[Benchmark, dict[str, Any]]:
    """Open the data of a new job, and return it with the other arguments of `plan_job`."""
    names = [name.strip() for name in options.strategy.split(",") if name.strip()]
    variants = parse_variants(options.variants)
    require_server(names, settings, variants)
    try:
        benchmark = open_benchmark(
            options.domains,
            data_dir=options.data_dir,
            require_real=options.require_real,
            skip_bad_images=options.skip_bad_images,
            seed=int(settings.get("seed", 0)),
            options=parse_assignments(options.domains_args, option="--domains-args"),
            notify=progress.note,
        )
    except UsageError as error:
        raise UsageError(f"--domains {options.domains}: {error}") from error
    settings |= moved_to(options.data_dir, benchmark.title, benchmark.options)
    return benchmark, {
        "strategies": names,
        "strategy_args": parse_assignments(options.strategy_args, option="--strategy-args"),
        "target": options.target,
        "trials": options.trials,
        "overrides": settings,
        "variants": variants,
    }


def go_back(job: Job) -> None:
    """Put the runs of a job back to the round that it is to resume from; this process must hold its directory.

    Runs that have not passed that round stay where they are.
    """
    wanted = job.resume_from
    if wanted is None:
        return
    last = max(number for run in job.runs for number in (-1, *run.directory.kept_rounds()))
    if wanted > last:
        raise UsageError(
            f"--resume-from {wanted}: no run of the job in {job.path} has come that far, the last is at round "
            f"{max(last, 0)}; choose an earlier round, or continue with --resume"
        )
    later = [run for run in job.runs if max(run.directory.kept_rounds(), default=-1) > wanted]
    for run in later:
        if wanted not in (kept := run.directory.kept_rounds()):
            raise UsageError(
                f"--resume-from {wanted}: {run.directory.path} keeps the checkpoints of rounds "
                f"{', '.join(map(str, kept))}; choose one of them, or delete the directory to make this run anew"
            )
    with ExitStack() as held:
        for run in later:
            held.enter_context(_alone_in(run))
        for run in later:
            run.directory.go_back(wanted)
            (run.directory.path / STATE).unlink(missing_ok=True)  # trackers begin a run anew


def run_job(job: Job, progress: Progress, *, engine: Engine = IN_PROCESS) -> dict[int, str]:
    """Run every incomplete run of a job.

    Returns:
        Why runs failed, by the number of the run in the job. A failure is returned if the others went on: if the job
        selects among settings, or its runs are side by side.
    """
    config = job.runs[0].config
    progress.header(header(job, engine=engine.title))
    prepare_domains(job, config, progress)
    progress.start([run.config.rounds for run in job.runs])
    tracking = Tracking(job, progress.warn)
    try:
        waiting = {number: run for number, run in enumerate(job.runs) if not _is_complete(job, number, progress)}
        for number, run in enumerate(job.runs):
            if number not in waiting:
                tracking.catch_up(run)
        if isinstance(engine, SideBySide):
            failures = run_side_by_side(job, waiting, engine.workers, progress, tracking)
            if failures and job.variants:
                progress.warn(f"The other settings went on. {describe_failures(job, failures)}")
            return failures
        with torch_threads(config.threads):
            return _run_in_turn(job, waiting, engine, progress, tracking)
    finally:
        progress.stop()


def _run_in_turn(
    job: Job, runs: Mapping[int, PlannedRun], engine: Engine, progress: Progress, tracking: Tracking
) -> dict[int, str]:
    failures: dict[int, str] = {}
    for number, run in runs.items():
        try:
            with _alone_in(run), tracking.follow(run, partial(progress.update, number)) as on_round:
                run_to_end(run.directory, run.config, classes=job.classes, engine=engine, on_round=on_round)
        except (FederationError, StrategyError, UsageError) as error:
            if not job.variants:
                raise
            failures[number] = str(error)
            progress.warn(
                f"{run.directory.path}{describe_setting(job, run)} stopped; the other settings go on. {error}"
            )
        progress.end_run(number)
    return failures


def _alone_in(run: PlannedRun) -> AbstractContextManager[None]:
    """Keep workers away from a run, if a worker has worked on it before."""
    return alone_in(run.directory) if (run.directory.path / ".lock").exists() else nullcontext()


def _is_complete(job: Job, number: int, progress: Progress) -> bool:
    """Report a run's completed rounds to progress; return whether the run is complete."""
    run = job.runs[number]
    done = run.directory.completed_round() or 0
    progress.add_run(number, name_run(job, run), done)
    if done < run.config.rounds:
        return False  # another worker may still write it
    run.directory.tidy()
    run.directory.load_checkpoint()  # so that damage shows
    return True


def prepare_domains(job: Job, config: RunConfig, progress: Progress) -> None:
    """Prepare each domain once before training; the clients find the result in the cache."""
    assert job.benchmark is not None, "a job that runs was planned with its data"
    which = json.dumps([job.benchmark.name, job.benchmark.options, config.data_dir])
    if _DIGESTS.setdefault(which, job.data["digest"]) != job.data["digest"]:
        MEMORY.clear()  # the data has changed since an earlier job of this process
        _DIGESTS[which] = job.data["digest"]
    share_loaded(job.benchmark)
    domains = [job.benchmark.load(domain) for domain in job.benchmark.domains]
    if keeps_images(config.model, images=config.images):
        require_room(domains, limit_gb=config.image_cache_gb, notify=progress.note)
    for data in domains:
        prepare_inputs(
            config.model,
            data,
            device=config.device_here,
            augment=config.augment,
            images=config.images,
            image_cache_gb=config.image_cache_gb,
            notify=progress.tick,
        )
