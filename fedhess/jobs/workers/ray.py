"""Workers of a Ray cluster: each run is one task."""

import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhess.base.environment import resolve_device
from fedhess.base.errors import UsageError
from fedhess.federation.engines.ray import connect, require_ray, room
from fedhess.jobs.workers.pool import Pool, StoppedError, WorkerDiedError, Workers
from fedhess.jobs.workers.worker import Result, Task, work
from fedhess.settings.run_config import RunConfig


@dataclass(frozen=True)
class RayWorkers(Workers):
    """``count`` tasks at once, each with a core for each of its threads and, if it trains on a GPU, a share of one."""

    address: str  # address of the cluster; local starts one on this machine

    def __post_init__(self) -> None:
        require_ray("--ray-address", instead="leave it out for processes of this machine")

    @property
    def title(self) -> str:
        """Their name in a header."""
        return f"Ray at {self.address}, {self.count} at once"

    def check_device(self, device: str) -> str:
        """Check the device: Ray chooses the machine and its GPU, and ``auto`` requests no GPU."""
        if device.startswith("cuda:"):
            raise UsageError(f"--device {device}: Ray chooses the GPU of each run; use --device cuda")
        return device if device == "cuda" else resolve_device("cpu" if device == "auto" else device)

    def open(self, job: Path, config: RunConfig) -> Pool:
        """Attach to the cluster."""
        del job
        cpus = max(1, config.threads)
        connect(cpus * self.count, self.address)
        gpus = self._gpus_each(config)
        room(cpus, gpus, of="a run", lower="--threads or the runs side by side, --parallel")
        return _RayTasks(cpus, gpus)

    def _gpus_each(self, config: RunConfig) -> float:
        """Return a run's share of a GPU: as many runs share one GPU as needed for all runs to proceed at once."""
        if config.device != "cuda":
            return 0.0
        ray: Any = importlib.import_module("ray")
        there = int(ray.cluster_resources().get("GPU", 0))
        if there == 0:
            raise UsageError("--device cuda: the Ray cluster has no GPU; use --device cpu")
        return 1 / -(-self.count // there)


class _RayTasks(Pool):
    def __init__(self, cpus: int, gpus: float) -> None:
        self._ray: Any = importlib.import_module("ray")
        # Ray does not retry: the caller counts the attempts after a worker has died.
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(work)
        self._lock = threading.Lock()
        self._waiting: list[Any] = []
        self._stopped = False

    def run(self, task: Task) -> Result:
        with self._lock:
            if self._stopped:
                raise StoppedError
            reference = self._remote.remote(task)
            self._waiting.append(reference)
        try:
            result: Result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if self._stopped:
                raise StoppedError from error
            raise WorkerDiedError(f"a worker of Ray ended: {str(error).splitlines()[0]}") from error
        finally:
            with self._lock:
                self._waiting.remove(reference)
        return result

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for reference in self._waiting:
                self._ray.cancel(reference, force=True)
