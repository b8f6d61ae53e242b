"""What every form of a job's table shares: its columns, which cells are best, heading and warnings."""

from collections.abc import Mapping
from typing import Any

Summary = Mapping[str, Any]  # what `summary.summarise` returns

BEST, SECOND, TIED, INCOMPLETE = "best", "second", "tied", "incomplete"
MARKS = "**best**, _second_, ~: within one standard error of the best, *: not all of its runs have ended"
SAME = 1e-9  # means, in percent, that are equal but for rounding


def accuracy_columns(summary: Summary) -> list[str]:
    """Name the columns of accuracies: the targets, and their average where it means something."""
    return [*summary["targets"], *(["average"] if summary["averaged"] else [])]


def cell_of(result: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return mean and standard error of a strategy in a column of accuracies."""
    found: dict[str, Any] = result["accuracy"].get(column) or result["average"]
    return found


def comparison_columns(summary: Summary) -> list[str]:
    """Name the columns of differences to the baseline: of the average, or of each target where there is none."""
    if not summary["comparison"]:
        return []
    baseline = summary["comparison"]["baseline"]
    compared = _compared(summary)
    return [f"to {baseline}" if len(compared) == 1 else f"{column} to {baseline}" for column in compared]


def differences_of(summary: Summary, strategy: str) -> list[Mapping[str, Any] | None]:
    """List a strategy's differences, by comparison column; None for the baseline itself."""
    if not summary["comparison"]:
        return []
    found = summary["comparison"]["strategies"].get(strategy)
    return [None if found is None else found[column] for column in _compared(summary)]


def _compared(summary: Summary) -> list[str]:
    return list(next(iter(summary["comparison"]["strategies"].values())))


def mark_best(summary: Summary) -> dict[tuple[str, str], frozenset[str]]:
    """Mark the best and second mean of each column, those within one standard error of the best, and incomplete ones.

    Equal means are all best, and then no one is second; the standard error is that of the best. Nothing is marked where
    fewer than two strategies have a mean.
    """
    marks: dict[tuple[str, str], frozenset[str]] = {}
    for column in accuracy_columns(summary):
        cells = {name: cell_of(result, column) for name, result in summary["strategies"].items()}
        means = {name: cell["mean"] for name, cell in cells.items() if cell["mean"] is not None}
        best = max(means.values(), default=0.0)
        winners = {name for name, value in means.items() if value >= best - SAME}
        others = [value for name, value in means.items() if name not in winners]
        error = max((cells[name]["standard_error"] or 0.0 for name in winners), default=0.0)
        for name in cells:
            found: set[str] = set()
            if len(means) > 1 and name in means:
                found |= {BEST} if name in winners else set()
                second = name not in winners and len(winners) == 1 and means[name] >= max(others) - SAME
                found |= {SECOND} if second else set()
                found |= {TIED} if name not in winners and means[name] >= best - error else set()
            lacking = summary["strategies"][name]["incomplete"]
            found |= {INCOMPLETE} if column in lacking or (column == "average" and lacking) else set()
            marks[name, column] = frozenset(found)
    return marks


def marked_text(text: str, marks: frozenset[str]) -> str:
    """Write the marks of a cell in Markdown: bold, italic, and ``~`` and ``*`` behind.

    >>> marked_text("70.1 +- 0.4", frozenset({SECOND, TIED}))
    '_70.1 +- 0.4_ ~'
    """
    around = "**" if BEST in marks else "_" if SECOND in marks else ""
    return f"{around}{text}{around}" + (" ~" if TIED in marks else "") + (" *" if INCOMPLETE in marks else "")


def heading(summary: Summary) -> str:
    """Name the data (a stand-in as such), the measure and the trials."""
    trials = "one trial" if len(summary["seeds"]) == 1 else "mean +- standard error over trials"
    return f"{summary['title']}: accuracy (%) on the target domain, {trials}"


def warnings(summary: Summary) -> list[str]:
    """List what a reader must not miss: runs that are not finished, clients that failed."""
    lacking = summary["unfinished"]
    failures = sum(result["failures"] for result in summary["strategies"].values())
    unfinished = f"UNFINISHED: {len(lacking)} of {summary['runs']} runs"
    return [
        *([unfinished] if lacking else []),
        *([f"{failures} failure(s) of clients: see rounds.jsonl"] if failures else []),
    ]
