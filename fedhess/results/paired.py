"""Whether a strategy differs from a baseline by more than seeds do: paired differences and their intervals.

Runs of one seed have the same initial weights, splits and batches. Strategies are therefore compared seed by seed,
which removes the variance that they share (Bouthillier et al., "Accounting for Variance in Machine Learning
Benchmarks", MLSys 2021). Runs of one seed that leave out different targets share most of their training data and are
not independent: the targets are averaged within a seed first, and the seed is the unit of Student's t. The interval is
about other seeds on the same targets, and does not cover targets that were not tried.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

BASELINE = "erm"
CONFIDENCE = 0.95
SAME = 1e-9  # percent: differences this close are equal up to rounding


def compare_paired(values: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any] | None:
    """Compare every strategy with ``erm``, or with the first strategy if ``erm`` did not run.

    Args:
        values: Accuracy in percent by strategy, column and seed; None if it is not known.

    Returns:
        JSON: ``baseline``, ``confidence``, ``comparisons`` (the number of tested comparisons, for which Holm's
        correction accounts), and by strategy and column the result of :func:`paired_difference` with ``p_holm``. None
        if there is nothing to compare.
    """
    if len(values) < 2:
        return None
    named = [name for name in values if name.partition(" ")[0] == BASELINE]  # merged jobs add what differs to the name
    baseline = BASELINE if BASELINE in values else [*named, *values][0]
    differences = {
        name: {column: paired_difference(by_seed, values[baseline][column]) for column, by_seed in columns.items()}
        for name, columns in values.items()
        if name != baseline
    }
    cells = [cell for columns in differences.values() for cell in columns.values()]
    tested = [cell for cell in cells if cell["p"] is not None]
    adjusted = iter(holm([cell["p"] for cell in tested]))
    for cell in cells:
        cell["p_holm"] = None if cell["p"] is None else next(adjusted)
    return {"baseline": baseline, "confidence": CONFIDENCE, "comparisons": len(tested), "strategies": differences}


def paired_difference(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> dict[str, Any]:
    """Compute the mean difference over the seeds that both have, with its interval and p-value by Student's t.

    Returns:
        ``difference``, None without a pair; ``low`` and ``high`` of the interval and two-sided ``p``, None for fewer
        than two pairs or if all pairs differ by the same amount, which leaves no spread; the number of ``pairs``.

    >>> cell = paired_difference({"0": 71.0, "1": 73.0, "2": 75.0}, {"0": 70.0, "1": 70.0, "2": 70.0})
    >>> {key: round(value, 3) for key, value in cell.items()}
    {'difference': 3.0, 'low': -1.968, 'high': 7.968, 'p': 0.122, 'pairs': 3}
    """
    from scipy.special import stdtr, stdtrit  # noqa: PLC0415 (a job of one strategy does not need it)

    pairs = [(value, theirs.get(seed)) for seed, value in ours.items()]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    cell: dict[str, Any] = {"difference": None, "low": None, "high": None, "p": None, "pairs": len(found)}
    if not found:
        return cell
    centre = sum(found) / len(found)
    cell["difference"] = centre
    spread = math.sqrt(sum((value - centre) ** 2 for value in found))
    if len(found) > 1 and spread > SAME:
        freedom = len(found) - 1
        error = spread / math.sqrt(freedom * len(found))
        half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
        cell |= {"low": centre - half, "high": centre + half, "p": 2 * float(stdtr(freedom, -abs(centre) / error))}
    return cell


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def stars(cell: Mapping[str, Any]) -> str:
    """Return ``"**"`` for a difference significant after Holm's correction, ``"*"`` if only its interval excludes 0."""
    if cell["p"] is None or cell["p"] >= 1 - CONFIDENCE:
        return ""
    return "**" if cell["p_holm"] < 1 - CONFIDENCE else "*"


def shown_difference(cell: Mapping[str, Any]) -> str:
    """Show a difference with its interval and stars, and the mark of runs that have not ended.

    >>> shown_difference({"difference": 3.0, "low": -1.968, "high": 7.968, "p": 0.122, "p_holm": 0.122})
    '+3.0 [-2.0, +8.0]'
    """
    if cell["difference"] is None:
        return "n/a"
    interval = "" if cell["low"] is None else f" [{signed(cell['low'])}, {signed(cell['high'])}]"
    unfinished = "!" if cell.get("incomplete") else ""
    return " ".join(filter(None, [signed(cell["difference"]) + interval, stars(cell), unfinished]))


def signed(value: float) -> str:
    """Show a difference in percentage points with its sign; a zero has no sign.

    >>> signed(-0.04)
    '0.0'
    """
    return "0.0" if f"{value:+.1f}" in ("+0.0", "-0.0") else f"{value:+.1f}"


def explain(comparison: Mapping[str, Any]) -> str:
    """Describe what the differences of a table are, and what their stars mean."""
    cells = [cell for columns in comparison["strategies"].values() for cell in columns.values()]
    start = f"to {comparison['baseline']}: difference in percentage points, paired by seed"
    if not comparison["comparisons"]:
        return f"{start}; no interval: that takes two seeds or more, whose differences vary"
    averaged = {column for columns in comparison["strategies"].values() for column in columns} == {"average"}
    within = "; the targets of a seed are not independent and are averaged first" if averaged else ""
    pairs = sorted({cell["pairs"] for cell in cells if cell["p"] is not None})
    return (
        f"{start}, with its {100 * comparison['confidence']:.0f} % confidence interval (Student's t over "
        f"{' or '.join(map(str, pairs))} seeds{within}); "
        f"*: the interval excludes 0, **: also after Holm's correction for {comparison['comparisons']} "
        "comparison(s); without a star it may be noise"
    )
