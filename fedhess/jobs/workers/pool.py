"""What every kind of workers offers: a run is handed to one of them, which ends it or dies."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from fedhess.jobs.workers.worker import Result, Task
from fedhess.settings.run_config import RunConfig


class WorkerDiedError(Exception):
    """A worker ended in the middle of a run; the message is how."""


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
        """End all workers at once, in the middle of their runs too."""


@dataclass(frozen=True)
class Workers(ABC):
    """Workers as they were asked for."""

    count: int

    @property
    @abstractmethod
    def title(self) -> str:
        """What a header calls them."""

    def check_device(self, device: str) -> str:
        """Check ``--device`` where the workers are, as far as that is known; return it."""
        return device

    def threads(self) -> int:
        """Return the threads of torch for a run whose model leaves them to torch."""
        return 1

    @abstractmethod
    def open(self, job: Path, config: RunConfig) -> Pool:
        """Make the workers of a job ready."""
