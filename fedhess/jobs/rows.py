"""Rows of rounds.jsonl by domain: the measurements of a domain's clients, merged.

Selection, tables, figures and progress work with domains, whatever the number of their clients.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedhess.federation.server.run_directory import Row
from fedhess.jobs.metrics import add_calibrations, add_confusions

NOTHING = "none"  # the split of a row whose client has no example of the domain to evaluate


def domain_rows(rows: Iterable[Row]) -> list[Row]:
    """Merge the rows of a round's clients into one row for each domain and split; every example counts once.

    Loss and accuracy are means over the clients, weighted by their examples, and null if any value is null. Distances
    already belong to the domain. Counts of predictions are added, and are null if any is null. ``train_loss`` and
    ``train_objective`` belong to single clients, and are averaged over the clients that have them. Failures are listed
    and bytes added. A domain of one client keeps its row, so merging twice changes nothing.

    >>> rows = [{"round": 1, "role": "source", "domain": "a", "client": 0, "split": "validation", "examples": 1,
    ...          "loss": 1.0, "accuracy": 1.0, "failures": []}]
    >>> rows += [{**rows[0], "client": 1, "examples": 3, "accuracy": 0.0}]
    >>> [(row["domain"], row["examples"], row["accuracy"]) for row in domain_rows(rows)]
    [('a', 4, 0.25)]
    """
    groups: dict[tuple[int, str, str, str], list[Row]] = {}
    without: dict[tuple[int, str, str], list[Row]] = {}
    for row in rows:
        place = (row["round"], row["role"], row["domain"])
        if row["split"] == NOTHING:
            without.setdefault(place, []).append(row)
        else:
            groups.setdefault((*place, row["split"]), []).append(row)
    for place, silent in without.items():
        split = next((key[3] for key in groups if key[:3] == place), NOTHING)
        groups.setdefault((*place, split), []).extend(silent)
    return [group[0] if len(group) == 1 else _merged(group) for group in groups.values()]


def _merged(group: Sequence[Row]) -> Row:
    evaluating = [row for row in group if row["split"] != NOTHING]
    merged = dict((evaluating or group)[0])
    for of_one in ("main_domain", "sent"):
        merged.pop(of_one, None)
    merged["client"] = 0
    merged["examples"] = sum(row["examples"] for row in evaluating)
    for key in ("loss", "accuracy", "gradient_distance", "hgp_distance"):
        if key in merged:
            merged[key] = _mean([(row[key], row["examples"]) for row in evaluating])
    adds: dict[str, Callable[[list[Any]], Any]] = {"confusion": add_confusions, "calibration": add_calibrations}
    for key, add in adds.items():
        if key in merged:
            counts = [row[key] for row in evaluating if row.get(key) is not None]
            merged[key] = add(counts) if len(counts) == len(evaluating) else None
    for key in ("train_loss", "train_objective"):
        if key in merged:
            merged[key] = _mean([(row[key], 1) for row in group if row[key] is not None])
    merged["failures"] = [failure for row in group for failure in row.get("failures", [])]
    for key in ("bytes_down", "bytes_up"):
        if key in merged:
            merged[key] = sum(row[key] for row in group)
    return merged


def _mean(weighted: Sequence[tuple[float | None, float]]) -> float | None:
    """Return the weighted mean; None if a number is None or the weights sum to 0."""
    present = [(value, weight) for value, weight in weighted if value is not None]
    total = sum(weight for _, weight in present)
    if len(present) < len(weighted) or total == 0:
        return None
    return sum(value * weight for value, weight in present) / total
