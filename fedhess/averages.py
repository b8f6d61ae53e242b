"""Means over trials, none where a trial is missing, and how tables show them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean_and_error(fractions: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard error of fractions, in percent.

    The standard error is that of the mean: sqrt(sum (x - mean)^2 / (n - 1) / n). None for a single trial, and both are
    None where a trial is.
    """
    centre = mean(fractions)
    present = [value for value in fractions if value is not None]
    error = None
    if centre is not None and len(present) > 1:
        variance = sum((value - centre) ** 2 for value in present) / (len(present) - 1)
        error = 100 * math.sqrt(variance / len(present))
    return {"mean": None if centre is None else 100 * centre, "standard_error": error, "trials": len(present)}


def mean(values: Sequence[float | None]) -> float | None:
    """Average values; None where one is missing, or there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def shown(cell: Mapping[str, Any]) -> str:
    """Show a mean with its standard error."""
    if cell["mean"] is None:
        return "n/a"
    error = cell["standard_error"]
    return f"{cell['mean']:.1f}" + (f" +- {error:.1f}" if error is not None else "")


def short(value: float | None) -> str:
    """Show a number with three digits."""
    return "n/a" if value is None else f"{value:.3g}"
