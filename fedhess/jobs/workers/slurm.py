"""Workers of a Slurm cluster: each run is one Slurm job, submitted by submitit."""

import importlib
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhess.base.environment import resolve_device
from fedhess.base.errors import UsageError
from fedhess.jobs.workers.pool import Pool, StoppedError, WorkerDiedError, Workers
from fedhess.jobs.workers.worker import Result, Task, work
from fedhess.settings.assignments import Scalar, parse_assignments
from fedhess.settings.run_config import RunConfig

OPTION = "--slurm-args"
POLL_SECONDS = 0.5  # between checks for a result
ASK_SECONDS = 30.0  # between queries to Slurm about a job without a result
MINUTES = 60  # the most that one Slurm job may take; its run continues in another
CLUSTERS = ("slurm", "local")


@dataclass(frozen=True)
class SlurmWorkers(Workers):
    """``count`` Slurm jobs at once."""

    # sbatch options by name, and `cluster`: slurm, or local for processes that submitit starts here
    args: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Their name in a header."""
        where = "Slurm" if self.args["cluster"] == "slurm" else "submitit's local processes"
        return f"{where}, {self.count} at once"

    def check_device(self, device: str) -> str:
        """Check the device: Slurm chooses the machine and its GPU."""
        if device.startswith("cuda:"):
            raise UsageError(f"--device {device}: Slurm chooses the GPU of each run; use --device cuda")
        return device if device in ("auto", "cuda") else resolve_device(device)

    def open(self, job: Path, config: RunConfig) -> Pool:
        """Prepare submissions; batch files, logs and results of Slurm jobs are kept in the job's ``slurm`` folder."""
        submitit = import_submitit()
        args = dict(self.args)
        executor = submitit.AutoExecutor(folder=job / "slurm" / "%j", cluster=args.pop("cluster"))
        executor.update_parameters(
            name="fedhess",
            timeout_min=args.pop("time", MINUTES),
            cpus_per_task=args.pop("cpus_per_task", max(1, config.threads)),
            slurm_additional_parameters=args,
        )
        return _SlurmJobs(executor)


def import_submitit() -> Any:
    """Import submitit without its logging configuration, which closes the handlers of every logger."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    return importlib.import_module("submitit")


def read_slurm_args(text: str) -> dict[str, Scalar]:
    """Read ``--slurm-args partition=gpu,time=120``."""
    args = {"cluster": "slurm"} | parse_assignments(text, option=OPTION)
    if args["cluster"] not in CLUSTERS:
        raise UsageError(f"{OPTION}: expected cluster={' or cluster='.join(CLUSTERS)}, got {args['cluster']!r}")
    if not isinstance(args.get("time", 1), int) or int(args.get("time", 1)) < 1:
        raise UsageError(f"{OPTION}: expected time as a whole number of minutes, got {args['time']!r}")
    if importlib.util.find_spec("submitit") is None:
        raise UsageError("--slurm: submitit is not installed; pip install 'fedhess[slurm]'")
    if args["cluster"] == "slurm" and not shutil.which("sbatch"):
        raise UsageError(
            "--slurm: there is no sbatch here; run the command where Slurm's jobs are submitted, leave --slurm out for "
            f"processes of this machine, or try the job out here with {OPTION} cluster=local"
        )
    return args


class _Run:
    """A task as a Slurm job, queued again when its time is up or when it is preempted."""

    def __call__(self, task: Task) -> Result:
        return work(task)

    def checkpoint(self, task: Task) -> Any:
        """Return the job that continues this one: the same task, since a run starts at its last completed round."""
        return import_submitit().helpers.DelayedSubmission(self, task)


class _SlurmJobs(Pool):
    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._submitted: list[Any] = []
        self._stopped = False

    def run(self, task: Task) -> Result:
        with self._lock:
            if self._stopped:
                raise StoppedError
            try:
                job = self._executor.submit(_Run(), task)
            except Exception as error:
                raise UsageError(f"--slurm: no job could be submitted: {error}") from error
            self._submitted.append(job)
        asked = time.monotonic()
        while not job.done(force_check=(asks := time.monotonic() - asked > ASK_SECONDS)):
            if self._stopped:
                raise StoppedError
            asked = time.monotonic() if asks else asked
            time.sleep(POLL_SECONDS)
        with self._lock:
            self._submitted.remove(job)
        try:
            result: Result = job.result()
        except Exception as error:  # errors of the run are in its result: this one is of the job
            raise WorkerDiedError(f"Slurm's job {job.job_id} ended: {error}; its log is {job.paths.stderr}") from error
        return result

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for job in self._submitted:
                job.cancel(check=False)
