"""Means over trials, none where a trial is missing, and how tables show them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean_and_error(values: Sequence[float | None], *, unit: float = 100.0) -> dict[str, Any]:
    """Return mean and standard error, of fractions in percent.

    None for both where a value is missing, for the error of a single trial too.

    Args:
        values: One a trial.
        unit: What they are multiplied by.
    """
    centre = mean(values)
    present = [value for value in values if value is not None]
    error = None if centre is None else standard_error(present)
    return {
        "mean": None if centre is None else unit * centre,
        "standard_error": None if error is None else unit * error,
        "trials": len(present),
    }


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, sqrt(sum (x - mean)^2 / (n - 1) / n); None for a single value.

    It is what ``+-`` means in every table, and what a band or an error bar means in every figure.
    """
    if len(values) < 2:
        return None
    centre = sum(values) / len(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


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
