"""Rows of rounds.jsonl by domain: what the clients of a domain measured, put together.

Selection, tables, figures and progress see domains, whatever the number of their clients.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedhess.federation.server.run_directory import Row
from fedhess.jobs.metrics import add_calibrations, add_confusions

NOTHING = "none"  # the split of a row whose client has no example of the domain to evaluate


def domain_rows(rows: Iterable[Row]) -> list[Row]:
    """Put the rows of a round's clients together, so that each domain and split has one: every example counts once.

    Loss and accuracy are means over the clients by their examples, null where one of them is; distances are the
    domain's anyway. Counts of predictions are added up, null where one is. What only single clients have
    (``train_loss``, ``train_objective``) is averaged over those that have it, failures are listed and bytes added up.
    A domain of one client keeps its row, so that doing this twice changes nothing.

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
    """Average numbers by their weights; None where one is."""
    present = [(value, weight) for value, weight in weighted if value is not None]
    total = sum(weight for _, weight in present)
    if len(present) < len(weighted) or total == 0:
        return None
    return sum(value * weight for value, weight in present) / total
