"""Kill a run at any of its accesses to the disk, as SIGKILL would, without the cost of a process for each."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


class Killed(BaseException):
    """No code of the project catches this."""


@dataclass
class Assassin:
    """Count the accesses below a directory and kill before one of them.

    Attributes:
        below: The directory.
        strike: Number of the access that is not let through; 0 only counts.
        seen: Accesses so far.
    """

    below: str = ""
    strike: int = 0
    seen: int = 0

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Serve as an audit hook."""
        if event not in EVENTS or not self.below or not str(arguments[0]).startswith(self.below):
            return
        self.seen += 1
        if self.seen == self.strike:
            raise Killed(f"{event} {arguments[0]}")

    def attempt(self, run: Callable[[], object], *, below: Path, strike: int) -> bool:
        """Run until the access number ``strike``; return whether the run was killed."""
        self.below, self.strike, self.seen = str(below), strike, 0
        try:
            run()
        except Killed:
            return True
        finally:
            self.below = ""
        return False


ASSASSIN = Assassin()
sys.addaudithook(ASSASSIN.watch)  # a hook cannot be taken away again; this one sleeps while it watches nothing
