"""Show what a job is doing: on a terminal a bar with the time left and one line for each run, elsewhere plain lines."""

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.rows import domain_rows

SECONDS_BETWEEN_LINES = 5.0
BOX_WIDTH = 76


class Progress:
    """The progress of one job.

    Args:
        silent: Print only warnings, to stderr.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent, self._headed = silent, False
        self._console = Console(file=sys.stderr if silent else sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None  # on a terminal, the job's bar above a line for each run in progress
        self._said = time.monotonic()
        self._begin(())

    def note(self, message: str) -> None:
        """Print a notice."""
        if not self._silent:
            self._console.print(message, markup=False)

    def warn(self, message: str) -> None:
        """Print a boxed warning that a reader of the results must not miss, to stderr when silent; nothing if empty."""
        if not message:
            return
        lines = [part for line in message.splitlines() for part in textwrap.wrap(line, BOX_WIDTH)]
        width = max(map(len, lines))
        edge = "+" + "-" * (width + 2) + "+"
        self._console.print("\n".join([edge, *(f"| {line.ljust(width)} |" for line in lines), edge]), markup=False)

    def tick(self, message: str) -> None:
        """Print a step of a slow operation, unless a line was printed a moment ago."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self.note(message)

    def header(self, entries: Mapping[str, str]) -> None:
        """Print what is about to run, only once, because a search runs its job in parts."""
        if not self._silent and not self._headed:
            self._headed = True
            width = max(map(len, entries))
            text = "\n".join(f"{key.ljust(width)}  {value}" for key, value in entries.items())
            self._console.print(text + "\n", markup=False)

    def start(self, rounds: Sequence[int]) -> None:
        """Begin, given the number of rounds of each run."""
        self._begin(rounds)
        if not self._silent and self._console.is_terminal:
            self._bar.add_task("", total=sum(rounds))
            self._live = Live(Group(self._bar, self._lines), console=self._console, transient=True)
            self._live.start()

    def _begin(self, rounds: Sequence[int]) -> None:
        line = Column(no_wrap=True, overflow="ellipsis")
        self._bar = Bar(TextColumn("{task.description}", markup=False), BarColumn(12), console=self._console)
        self._lines = Bar(TextColumn("{task.description}", markup=False, table_column=line), console=self._console)
        self._rounds = rounds
        self._labels: dict[int, str] = {}
        self._done: dict[int, int] = {}  # rounds, by run
        self._line_of: dict[int, TaskID] = {}
        self._skipped = self._given_up = 0
        self._started = self._said = time.monotonic()

    def stop(self) -> None:
        """End the bar."""
        if self._live is not None:
            self._live.stop()

    def add_run(self, number: int, label: str, done: int) -> None:
        """Add a run whose checkpoint already has ``done`` rounds."""
        self._labels[number], self._done[number] = label, done
        self._skipped += done
        self._show_job()

    def update(self, number: int, server_round: int, rows: Sequence[Row]) -> None:
        """Report an evaluated round of a run."""
        self._done[number] = server_round
        self._show_job()
        of = self._rounds[number]
        text = f"[{number + 1}/{len(self._rounds)}] {self._labels[number]}, round {server_round}/{of}: {scores(rows)}"
        if self._live is not None:
            if number not in self._line_of:
                self._line_of[number] = self._lines.add_task("")
            self._lines.update(self._line_of[number], description=text)
            self._live.refresh()
        last = server_round == of
        if self._silent or (self._live is not None and not last):
            return
        if last or time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._console.print(text if self._live is not None else f"{text}, {self._left()}", markup=False)

    def end_run(self, number: int) -> None:
        """End a run, whether it is complete or failed; the time left then covers the other runs only."""
        if number in self._line_of:
            self._lines.remove_task(self._line_of.pop(number))
        self._given_up += self._rounds[number] - self._done[number]
        self._show_job()

    def _show_job(self) -> None:
        if self._live is not None:
            ended = sum(done == self._rounds[number] for number, done in self._done.items())
            text = f"{ended} of {len(self._rounds)} runs, {self._left()}"
            self._bar.update(TaskID(0), completed=sum(self._done.values()), description=text)

    def _left(self) -> str:
        """Estimate the remaining time of the runs from their speed so far, without the skipped rounds.

        These are all runs of the job; in an Optuna search, the runs planned so far, and each suggestion starts anew.
        """
        done = sum(self._done.values())
        fresh, left = done - self._skipped, sum(self._rounds) - done - self._given_up
        if fresh <= 0:
            return "time left unknown"
        seconds = (time.monotonic() - self._started) / fresh * left
        if seconds < 100:
            return f"{seconds:.0f} s left"
        return f"{seconds / 60:.0f} min left" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h left"


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
