"""Strategies that end the process they train in, or raise; what they do depends on files in ``$DEADLY``."""

import os
import signal
from pathlib import Path

from torch import Tensor

from fedhess.alignment.step import Step
from fedhess.alignment.strategy import DomainStrategy


class KilledOnce(DomainStrategy):
    """ERM; the first process that comes to the second half of its work is killed."""

    def objective(self, step: Step, reference: object) -> Tensor:
        """Kill this process unless another was."""
        folder = Path(os.environ["DEADLY"])
        steps = folder / "steps"
        with steps.open("a") as file:
            file.write(".")
        if steps.stat().st_size == 8 and not (folder / "spare").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return step.loss


class KilledAlways(DomainStrategy):
    """Nothing survives this."""

    def objective(self, step: Step, reference: object) -> Tensor:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)
        return step.loss


class Raises(DomainStrategy):
    """Raises unless it is told not to."""

    def objective(self, step: Step, reference: object) -> Tensor:
        """Raise."""
        if not (Path(os.environ["DEADLY"]) / "spare").exists():
            raise ZeroDivisionError("no such penalty")
        return step.loss
