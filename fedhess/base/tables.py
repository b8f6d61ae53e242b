"""Markdown tables that also read well on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Render a table with aligned columns.

    Args:
        heads: The columns' heads.
        lines: Cells, one row each.
        left: How many of the first columns are aligned to the left; numbers are aligned to the right.

    >>> print(markdown_table(["name", "n"], [["a", "10"]]))
    | name |  n |
    |------|----|
    | a    | 10 |
    """
    widths = [max(len(row[column]) for row in [heads, *lines]) for column in range(len(heads))]

    def rendered(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rendered(heads), rule, *map(rendered, lines)])


def notes(summary: Mapping[str, Any]) -> list[str]:
    """List below a table what its numbers rest on: the strategies' arguments, signs of sick runs, and gaps.

    Gaps are rounds that too few source clients evaluated.
    """
    strategies = summary["strategies"].items()
    sections = {
        "arguments, defaults included:": [f"- {name}: {text}" for name, text in summary["arguments"].items()],
        "sick runs:": [f"- {name}, {run}: {sign}" for name, of in strategies for run, sign in of["sick"].items()],
        "gaps (a round that fewer source clients evaluated than the quorum does not count):": [
            f"- {name}, {gap}" for name, of in strategies for gap in of["gaps"]
        ],
    }
    return [line for heading, lines in sections.items() if lines for line in ("", heading, *lines)]
