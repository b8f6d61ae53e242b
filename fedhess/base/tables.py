"""Markdown tables that also read well on a terminal, and the means over trials that stand in them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean(values: Sequence[float | None]) -> float | None:
    """Average values; None if one is missing or there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, sqrt(sum (x - mean)^2 / (n - 1) / n); None for a single value.

    Every ``+-`` in a table and every band or error bar in a figure shows this value.
    """
    if len(values) < 2:
        return None
    centre = sum(values) / len(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def mean_and_error(values: Sequence[float | None], *, unit: float = 100.0) -> dict[str, Any]:
    """Return mean and standard error over trials, multiplied by ``unit``; None if a value is missing."""
    centre = mean(values)
    present = [value for value in values if value is not None]
    error = None if centre is None else standard_error(present)
    return {
        "mean": None if centre is None else unit * centre,
        "standard_error": None if error is None else unit * error,
        "trials": len(present),
    }


def shown(cell: Mapping[str, Any]) -> str:
    """Show a mean with its standard error."""
    if cell["mean"] is None:
        return "n/a"
    error = cell["standard_error"]
    return f"{cell['mean']:.1f}" + (f" +- {error:.1f}" if error is not None else "")


def short(value: float | None) -> str:
    """Show a number with three digits."""
    return "n/a" if value is None else f"{value:.3g}"


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Render a table: the first ``left`` columns are aligned left; the others hold numbers and are aligned right.

    >>> print(markdown_table(["name", "n"], [["a", "10"]]))
    | name |  n |
    |------|----|
    | a    | 10 |
    """
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]

    def rendered(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rendered(heads), rule, *map(rendered, lines)])


SPENT = "epsilon spent in one run by the sources (runs with the same data add up)"


def notes(*summaries: Mapping[str, Any]) -> list[str]:
    """Return the lines below a table: the strategies' arguments and the warnings about its cells, each line once."""
    arguments = [f"{name}: {text}" for summary in summaries for name, text in summary["arguments"].items()]
    sections = {"arguments, defaults included": arguments} | warnings_of(*summaries)
    return [
        line
        for heading, lines in sections.items()
        if lines
        for line in ("", f"{heading}:", *(f"- {text}" for text in dict.fromkeys(lines)))
    ]


def warnings_of(*summaries: Mapping[str, Any]) -> dict[str, list[str]]:
    """List by heading what a reader must know about a table's cells.

    The headings are incomplete runs, choices at the edge of the search, strategies that cost accuracy on the sources,
    sick runs, privacy spent, protected counts, and gaps: rounds with too few source clients.
    """
    strategies = [pair for summary in summaries for pair in summary["strategies"].items()]
    return {
        "incomplete, marked with !; runs that failed with the reason": [
            f"{name}, {where}: {text}"
            for name, of in strategies
            for where, text in [*of["incomplete"].items(), *of["unfinished"].items()]
        ],
        "at the edge of what was searched, so that a better value may lie beyond it": [
            f"{name}, {key}: {text}" for name, of in strategies for key, text in of.get("edges", {}).items()
        ],
        "less accurate on the sources than the baseline by more than seeds explain: unless the sources mislead, its "
        "arguments do not fit this data; lower its coefficients, or search them (fedhess sweep)": [
            f"{name}: {of['unfit']}"  # of the first selector: that of another would stand beside it without its name
            for summary in summaries[:1]
            for name, of in summary["strategies"].items()
            if of.get("unfit")
        ],
        "sick runs": [f"{name}, {run}: {sign}" for name, of in strategies for run, sign in of["sick"].items()],
        SPENT: [f"{name}: {of['privacy']}" for name, of in strategies if "privacy" in of],
        "counts of targets are rounded or noisy, and their accuracies with them (epsilon, by adding up)": [
            line for summary in summaries for line in summary.get("protected", ())
        ],
        "gaps (a round that fewer source clients evaluated than the quorum does not count)": [
            f"{name}, {gap}" for name, of in strategies for gap in of["gaps"]
        ],
    }
