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


def list_gaps(summary: Mapping[str, Any]) -> list[str]:
    """List, below a table, the rounds that too few source clients evaluated; nothing where there is none."""
    lines = [f"- {name}, {gap}" for name, result in summary["strategies"].items() for gap in result["gaps"]]
    heading = "gaps (a round that fewer source clients evaluated than the quorum does not count):"
    return ["", heading, *lines] if lines else []
