"""The interface of all kinds of workers: a run is given to one worker, which completes it or dies."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from fedhess.jobs.workers.worker import Result, Task
from fedhess.settings.run_config import RunConfig


class WorkerDiedError(Exception):
    """A worker ended in the middle of a run; the message says how."""


class StoppedError(Exception):
    """All workers were stopped."""


class Pool(ABC):
    """Workers that are ready."""

    @abstractmethod
    def run(self, task: Task) -> Result:
        """Run a task on one worker and wait for it; called from as many threads as there are workers.

        Raises:
            WorkerDiedError: The worker died.
            StoppedError: All workers were stopped.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers at once, even in the middle of their runs."""


@dataclass(frozen=True)
class Workers(ABC):
    """The requested workers, not started yet."""

    count: int

    @property
    @abstractmethod
    def title(self) -> str:
        """Their name in a header."""

    def check_device(self, device: str) -> str:
        """Check ``--device`` for the place where the workers are, as far as that is known; return it."""
        return device

    def threads(self) -> int:
        """Return the number of torch threads for a run whose model leaves it to torch."""
        return 1

    @abstractmethod
    def open(self, job: Path, config: RunConfig) -> Pool:
        """Prepare the workers of a job."""
