"""Run the runs of a job side by side: give them to workers, show progress, restart those whose worker died."""

import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from fedhess.federation.server.round_selection import rows_by_round
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.directory import is_held
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.progress import Progress
from fedhess.jobs.tracking import Tracking
from fedhess.jobs.workers.pool import Pool, WorkerDiedError, Workers
from fedhess.jobs.workers.worker import Result, Task

LIVES = 3  # workers that a run may use: a run that kills three would kill the next
LOOK_SECONDS = 0.25  # between looks at what the runs have recorded

logger = logging.getLogger(__name__)


def run_side_by_side(
    job: Job, runs: Mapping[int, PlannedRun], workers: Workers, progress: Progress, tracking: Tracking
) -> dict[int, str]:
    """Run several runs to the end, as many at a time as there are workers.

    If a worker dies, the current round is lost and another worker continues from the checkpoint. A failed run does not
    stop the others. Ctrl-C stops all workers; every run can be resumed.

    Returns:
        Why runs failed, by the number of the run.
    """
    tasks = {number: _task(job, run) for number, run in runs.items()}
    watched = {number: _Watched(run) for number, run in runs.items()}
    failures: dict[int, str] = {}
    pool = workers.open(job.path.resolve(), job.runs[0].config)
    with ThreadPoolExecutor(workers.count) as threads, ExitStack() as stack:
        followed = {number: stack.enter_context(ExitStack()) for number in runs}
        on_round = {
            number: followed[number].enter_context(tracking.follow(run, partial(progress.update, number)))
            for number, run in runs.items()
        }
        futures = {threads.submit(_see_through, pool, task, progress): number for number, task in tasks.items()}
        try:
            while futures:
                ended = wait(futures, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED).done
                for future, number in futures.items():
                    if future.running() or future in ended:
                        for server_round, rows in watched[number].new(ended=future in ended).items():
                            on_round[number](server_round, rows)
                for future in ended:
                    number, result = futures.pop(future), future.result()
                    progress.end_run(number)
                    followed[number].close()
                    for warning in result.warnings:
                        logger.warning("%s", warning)
                    if result.failure is not None:
                        if not is_held(runs[number].directory.path):  # else another worker still runs it
                            runs[number].directory.record_failure(result.failure)
                        failures[number] = result.failure
        except BaseException:
            for future in futures:
                future.cancel()
            pool.stop()
            raise
        pool.stop()
    return failures


def _task(job: Job, run: PlannedRun) -> Task:
    path = job.path.resolve()
    return Task(
        job=str(path),
        run=run.directory.path.resolve().relative_to(path).as_posix(),
        config=run.config.model_dump(mode="json"),
        classes=job.classes,
        threads=torch.get_num_threads(),
        folder=os.getcwd(),
        path=[entry for entry in map(os.path.abspath, sys.path) if Path(entry).exists()],
    )


def _see_through(pool: Pool, task: Task, progress: Progress) -> Result:
    """Run a task to its end; if a worker dies, another one takes over."""
    for life in range(1, LIVES + 1):
        try:
            return pool.run(task)
        except WorkerDiedError as error:
            how = str(error)
            if life < LIVES:
                progress.note(f"{task.run}: {how}; another worker goes on from the checkpoint")
    return Result(f"{LIVES} workers died in it, the last: {how}")


class _Watched:
    """The rows of a run that another process writes."""

    def __init__(self, run: PlannedRun) -> None:
        self._directory = run.directory
        self._size = self._read = self._size_now()
        self._last = max((row["round"] for row in run.directory.rows()), default=-1)

    def new(self, *, ended: bool) -> dict[int, list[Row]]:
        """Return the new rounds, the last one only once the file has stopped growing and so has all of its rows."""
        before, self._size = self._size, self._size_now()
        if self._size == self._read:
            return {}
        rounds = rows_by_round(self._directory.rows())
        if ended or self._size == before:
            self._read = self._size
        elif rounds:
            rounds.popitem()
        found = {number: rows for number, rows in rounds.items() if number > self._last}  # others were repeated
        self._last = max([self._last, *found])
        return found

    def _size_now(self) -> int:
        file = self._directory.rounds_file
        return file.stat().st_size if file.exists() else 0
