"""Choose the round whose model is reported, from recorded rows alone."""

from collections.abc import Sequence

from fedhess.protocol import SOURCE, TARGET
from fedhess.runs import Row

SOURCE_VALIDATION = "source validation"
LAST_ROUND = "last round"


def selection_rule(rows: Sequence[Row]) -> str:
    """Say which rule applies: source validation where the sources hold examples out, else the last round."""
    held_out = any(row["role"] == SOURCE and row["split"] == "validation" for row in rows)
    return SOURCE_VALIDATION if held_out else LAST_ROUND


def select_round(rows: Sequence[Row]) -> int:
    """Choose a round without looking at the target.

    Source validation: the round with the highest mean accuracy over the source domains' held-out examples, equal
    weight a domain; among equals the lowest mean loss, then the earliest. Source: Gulrajani and Lopez-Paz, "In Search
    of Lost Domain Generalization", ICLR 2021 (training-domain validation set). Deviation: they leave ties open.

    Args:
        rows: Rows of one run.

    Raises:
        ValueError: No round was evaluated by every source client.
    """
    by_round: dict[int, list[Row]] = {}
    for row in rows:
        if row["role"] == SOURCE:
            by_round.setdefault(row["round"], []).append(row)
    complete = {n: group for n, group in by_round.items() if all(row["accuracy"] is not None for row in group)}
    if not complete:
        raise ValueError("no round was evaluated by every source client; nothing can be selected")
    if selection_rule(rows) == LAST_ROUND:
        return max(complete)

    def merit(server_round: int) -> tuple[float, float, int]:
        group = complete[server_round]
        accuracy = sum(row["accuracy"] for row in group) / len(group)
        loss = sum(row["loss"] for row in group) / len(group)
        return accuracy, -loss, -server_round

    return max(complete, key=merit)


def target_accuracy(rows: Sequence[Row], server_round: int) -> dict[str, float | None]:
    """Return each target domain's accuracy at a round, None where its client failed."""
    return {row["domain"]: row["accuracy"] for row in rows if row["role"] == TARGET and row["round"] == server_round}


def mean_distance(rows: Sequence[Row], server_round: int, name: str) -> float | None:
    """Average an alignment distance over the source domains at a round; None if a client failed."""
    values = [row[name] for row in rows if row["role"] == SOURCE and row["round"] == server_round]
    return sum(values) / len(values) if values and all(value is not None for value in values) else None
