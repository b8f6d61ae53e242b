"""Choose the round whose model is reported, from recorded rows alone."""

import math
from collections.abc import Sequence

from fedhess.domain_rows import domain_rows
from fedhess.protocol import SOURCE, TARGET
from fedhess.runs import Row

SOURCE_VALIDATION = "source validation"
LAST_ROUND = "last round"


def selection_rule(rows: Sequence[Row]) -> str:
    """Say which rule applies: source validation where the sources hold examples out, else the last round."""
    held_out = any(row["role"] == SOURCE and row["split"] == "validation" for row in rows)
    return SOURCE_VALIDATION if held_out else LAST_ROUND


def select_round(rows: Sequence[Row]) -> int | None:
    """Choose a round without looking at the target.

    Source validation: the round with the highest mean accuracy over the source domains' held-out examples, equal
    weight a domain; among equals the lowest mean loss, then the earliest. Source: Gulrajani and Lopez-Paz, "In Search
    of Lost Domain Generalization", ICLR 2021 (training-domain validation set). Deviation: they leave ties open.

    Args:
        rows: Rows of one run.

    Returns:
        The round's number, or None where every round misses a source client. A domain's clients count together.
    """
    by_round: dict[int, list[Row]] = {}
    for row in domain_rows(rows):
        if row["role"] == SOURCE:
            by_round.setdefault(row["round"], []).append(row)
    complete = {n: group for n, group in by_round.items() if all(row["accuracy"] is not None for row in group)}
    if not complete:
        return None
    if selection_rule(rows) == LAST_ROUND:
        return max(complete)

    def merit(server_round: int) -> tuple[float, float, int]:
        group = complete[server_round]
        accuracy = sum(row["accuracy"] for row in group) / len(group)
        # A loss that is not finite is null in rounds.jsonl: the worst there is.
        loss = sum(math.inf if row["loss"] is None else row["loss"] for row in group) / len(group)
        return accuracy, -loss, -server_round

    return max(complete, key=merit)


def target_accuracy(rows: Sequence[Row], server_round: int | None, domain: str) -> float | None:
    """Return a target domain's accuracy in [0, 1] at a round, the mean over its clients weighted by examples.

    Returns:
        None where a client failed or no round was selected.
    """
    mine = [
        row for row in domain_rows(rows) if (row["role"], row["round"], row["domain"]) == (TARGET, server_round, domain)
    ]
    if not mine or any(row["accuracy"] is None for row in mine):
        return None
    correct = sum(row["accuracy"] * row["examples"] for row in mine)
    return float(correct / sum(row["examples"] for row in mine))


def source_accuracy(rows: Sequence[Row], server_round: int | None) -> float | None:
    """Return the mean accuracy in [0, 1] over the source domains at a round; None where a client failed."""
    values = [row["accuracy"] for row in domain_rows(rows) if row["role"] == SOURCE and row["round"] == server_round]
    return sum(values) / len(values) if values and all(value is not None for value in values) else None


def mean_distance(rows: Sequence[Row], server_round: int, name: str) -> float | None:
    """Average an alignment distance over the source domains at a round; None where one has none."""
    values = [row[name] for row in domain_rows(rows) if row["role"] == SOURCE and row["round"] == server_round]
    return sum(values) / len(values) if values and all(value is not None for value in values) else None
