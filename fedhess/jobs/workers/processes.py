"""Workers that are processes of this machine; its cores and GPUs are shared out among them."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedhess.base.environment import check_device
from fedhess.base.errors import UsageError
from fedhess.jobs.workers.pool import Pool, StoppedError, WorkerDiedError, Workers
from fedhess.jobs.workers.worker import Result, Task
from fedhess.settings.run_config import RunConfig

COMMAND = [sys.executable, "-m", "fedhess.jobs.workers.worker"]
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class LocalWorkers(Workers):
    """Processes of this machine."""

    gpus: Sequence[str] = ()  # assigned to workers in turn, one each; by default those visible to this process

    @property
    def title(self) -> str:
        """Their name in a header."""
        return f"{self.count} processes"

    def check_device(self, device: str) -> str:
        """Check that the device exists, and does not name a single GPU if GPUs are shared out."""
        if self.gpus and device not in ("auto", "cuda"):
            raise UsageError(f"--gpus: the workers use --device {device}; leave one of the two out")
        return check_device("cuda" if self.gpus else device)

    def threads(self) -> int:
        """Return a worker's share of the threads that torch would use here."""
        return max(1, torch.get_num_threads() // self.count)

    def open(self, job: Path, config: RunConfig) -> Pool:
        """Assign GPUs to the processes; each process starts with its first run."""
        del job
        one = config.device not in ("auto", "cuda") or config.device_here != "cuda"
        shared = self.gpus or ([] if one else visible_gpus())
        return _Processes([shared[number % len(shared)] if shared else None for number in range(self.count)])


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get(VISIBLE)
    return [part.strip() for part in given.split(",")] if given else [str(n) for n in range(torch.cuda.device_count())]


def read_gpus(text: str) -> list[str]:
    """Read ``--gpus 0,1``."""
    named, there = [part.strip() for part in text.split(",") if part.strip()], visible_gpus()
    if not named or not set(named) <= set(there):
        here = f"{', '.join(there)}" if there else "none: torch sees no CUDA device"
        raise UsageError(f"--gpus: expected GPUs of this machine separated by commas, got {text!r}; there are {here}")
    return named


class _Processes(Pool):
    def __init__(self, gpus: Sequence[str | None]) -> None:
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all = [_Process(gpu) for gpu in gpus]
        for process in self._all:
            self._free.put(process)

    def run(self, task: Task) -> Result:
        process = self._free.get()
        try:
            return process.run(task)
        finally:
            self._free.put(process)

    def stop(self) -> None:
        for process in self._all:
            process.stop()


class _Process:
    """A slot for one worker process, which is started on demand and restarted if it has died."""

    def __init__(self, gpu: str | None) -> None:
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if gpu is not None:
            self._environment[VISIBLE] = gpu
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, task: Task) -> Result:
        process = self._running()
        line = ""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(task.to_json() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            pass  # the process is gone
        if line.endswith("\n"):
            return Result(**json.loads(line))
        if self._stopped:
            raise StoppedError
        raise WorkerDiedError(f"process {process.pid} {_ending(process.wait())}")

    def _running(self) -> "subprocess.Popen[str]":
        with self._lock:
            if self._stopped:
                raise StoppedError
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C goes to the parent, which stops this process
                )
            return self._process

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was ended by {name}" + (", as by a kernel that is out of memory" if name == "SIGKILL" else "")
