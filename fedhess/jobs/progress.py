"""Show what a job is doing: a bar with the time left on a terminal, plain lines elsewhere, nothing when silent."""

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.rows import domain_rows

SECONDS_BETWEEN_LINES = 5.0
BOX_WIDTH = 76
WIDE = 120  # columns


class Progress:
    """The progress of one job.

    Args:
        silent: Print nothing but warnings, and those to stderr.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent, self._headed = silent, False
        self._console = Console(file=sys.stderr if silent else sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._rounds: Sequence[int] = ()
        self._run = 0
        self._label = ""
        self._round = 0
        self._skipped = 0
        self._started = self._said = time.monotonic()

    def note(self, message: str) -> None:
        """Print a notice."""
        if not self._silent:
            self._console.print(message, markup=False)

    def warn(self, message: str) -> None:
        """Print in a box what a reader of the results must not miss, if there is any; to stderr when silent."""
        if not message:
            return
        lines = [part for line in message.splitlines() for part in textwrap.wrap(line, BOX_WIDTH)]
        width = max(map(len, lines))
        edge = "+" + "-" * (width + 2) + "+"
        self._console.print("\n".join([edge, *(f"| {line.ljust(width)} |" for line in lines), edge]), markup=False)

    def tick(self, message: str) -> None:
        """Print a step of something slow, unless the last one was printed a moment ago."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self.note(message)

    def header(self, entries: Mapping[str, str]) -> None:
        """Print what is about to run, once: a search runs its job part by part."""
        if not self._silent and not self._headed:
            self._headed = True
            width = max(map(len, entries))
            text = "\n".join(f"{key.ljust(width)}  {value}" for key, value in entries.items())
            self._console.print(text + "\n", markup=False)

    def start(self, rounds: Sequence[int]) -> None:
        """Begin: one number of rounds a run."""
        self._rounds = rounds
        self._started = self._said = time.monotonic()
        if not self._silent and self._console.is_terminal:
            # Our own time left: rich's would take the rounds skipped on a resume for speed. It keeps its width; on a
            # narrow terminal the description gives way, and scores need a wide one.
            left = TextColumn("{task.fields[left]}", table_column=Column(min_width=11, no_wrap=True))
            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(12), left]
            if self._console.width >= WIDE:
                columns.append(TextColumn("{task.fields[scores]}", markup=False))
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=sum(rounds), scores="", left="")
            self._bar.start()

    def stop(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()

    def begin_run(self, number: int, label: str, done: int) -> None:
        """Begin a run of which ``done`` rounds are in its checkpoint already."""
        self._run, self._label, self._round = number, label, done
        self._skipped += done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._completed(), description=self._description())

    def update(self, server_round: int, rows: Sequence[Row]) -> None:
        """Report an evaluated round."""
        self._round = server_round
        last = server_round == self._rounds[self._run]
        left = f"{self._left():.0f} s left"
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=self._completed(),
                description=self._description(),
                scores=scores(rows),
                left=left,
                refresh=True,
            )
        if self._silent or (self._bar is not None and not last):
            return
        if last or time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            ending = "" if self._bar is not None else f", {left}"
            self._console.print(f"{self._description()}: {scores(rows)}{ending}", markup=False)

    def _description(self) -> str:
        return f"[{self._run + 1}/{len(self._rounds)}] {self._label}, round {self._round}/{self._rounds[self._run]}"

    def _completed(self) -> int:
        return sum(self._rounds[: self._run]) + self._round

    def _left(self) -> float:
        fresh = max(1, self._completed() - self._skipped)
        return (time.monotonic() - self._started) / fresh * (sum(self._rounds) - self._completed())


def scores(rows: Sequence[Row]) -> str:
    """Summarise a round's rows: mean accuracy on the sources, accuracy on each target."""
    by_domain = domain_rows(row for row in rows if row["accuracy"] is not None)
    sources = [row["accuracy"] for row in by_domain if row["role"] == SOURCE and row["accuracy"] is not None]
    mean = f"sources {100 * sum(sources) / len(sources):.1f} %" if sources else "sources n/a"
    targets = [
        f"{row['domain']} {'n/a' if row['accuracy'] is None else format(100 * row['accuracy'], '.1f') + ' %'}"
        for row in rows
        if row["role"] != SOURCE and row["split"] != "out"
    ]
    return ", ".join([mean, *targets])
