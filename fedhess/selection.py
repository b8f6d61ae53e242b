"""Choose what is reported, from recorded rows alone: the round, and the setting where a strategy has several.

The three selectors of Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, as their released
code has them (``model_selection.py``). Two never look at the target; the third is an upper bound that does, and no
default. Deviation: they leave ties open; here the lower loss wins, then the earlier round, then the earlier setting.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhess.domain_rows import domain_rows
from fedhess.errors import UsageError, did_you_mean
from fedhess.protocol import SOURCE, TARGET
from fedhess.runs import Row

SOURCE_VALIDATION = "source validation"
LAST_ROUND = "last round"
LODO = "leave-one-domain-out cross-validation"
ORACLE = "oracle (looks at the target)"

# By the name that --selection takes. The oracle is for reports that ask for it.
SELECTORS = {"source": SOURCE_VALIDATION, "lodo": LODO, "oracle": ORACLE}
DEFAULT = "source"

Merit = tuple[float, float, int]  # accuracy, minus the loss, minus the round: the greatest is the best


@dataclass(frozen=True)
class Candidate:
    """What one setting of a strategy recorded for one target and one seed.

    Attributes:
        rows: Of the run that leaves out the target.
        last_round: Number of rounds it was to train.
        inner: For cross-validation: by source domain, the rows of the run that leaves that one out as well.
    """

    rows: Sequence[Row]
    last_round: int
    inner: Mapping[str, Sequence[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What a selector chose.

    Attributes:
        candidate: Index of the setting.
        server_round: Number of the round.
        accuracy: What it was chosen by, in [0, 1].
    """

    candidate: int
    server_round: int
    accuracy: float


def read_selectors(given: str) -> list[str]:
    """Read ``--selection``: names of selectors, or all.

    Raises:
        UsageError: One is unknown, or none is left.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if names == ["all"]:
        return list(SELECTORS)
    for name in names:
        if name not in SELECTORS:
            raise UsageError(f"--selection: unknown selector {name!r}; {did_you_mean(name, SELECTORS)}, or all")
    if not names:
        raise UsageError(f"--selection: expected all or some of {', '.join(SELECTORS)}, got nothing")
    return names


def choose(selector: str, candidates: Sequence[Candidate], targets: Sequence[str]) -> Choice | None:
    """Choose the best round of the best setting.

    Args:
        selector: A key of :data:`SELECTORS`.
        candidates: The settings of one strategy, for the same target and seed, in their order.
        targets: The target domains; only the oracle looks at their rows.

    Returns:
        The choice, or None where no round of any setting has what the selector needs.

    Raises:
        UsageError: Source validation is to tell settings apart and their sources held nothing out.
    """
    if selector == "oracle":
        merits = [oracle_merits(each.rows, targets, last_round=each.last_round) for each in candidates]
    elif selector == "lodo":
        merits = [lodo_merits(each.rows, each.inner) for each in candidates]
    else:
        if len(candidates) > 1 and any(selection_rule(each.rows) == LAST_ROUND for each in candidates if each.rows):
            raise UsageError(
                f"{len(candidates)} settings cannot be told apart by source validation: their sources hold no example "
                "out; select by cross-validation (--selection lodo)"
            )
        merits = [source_merits(each.rows) for each in candidates]
    ranked = [(merit, -number) for number, by_round in enumerate(merits) for merit in by_round.values()]
    if not ranked:
        return None
    (accuracy, _, minus_round), minus_number = max(ranked)
    return Choice(-minus_number, -minus_round, accuracy)


def selection_rule(rows: Sequence[Row]) -> str:
    """Say which rule applies: source validation where the sources hold examples out, else the last round."""
    held_out = any(row["role"] == SOURCE and row["split"] == "validation" for row in rows)
    return SOURCE_VALIDATION if held_out else LAST_ROUND


def select_round(rows: Sequence[Row]) -> int | None:
    """Choose a round of one run without looking at the target; None where every round misses a source client."""
    choice = choose(DEFAULT, [Candidate(rows, last_round=0)], ())
    return None if choice is None else choice.server_round


def source_merits(rows: Sequence[Row]) -> dict[int, Merit]:
    """Judge rounds by the sources' held-out examples, equal weight a domain (training-domain validation set).

    Where the sources hold nothing out, the last round is the only one.

    Args:
        rows: Rows of one run; those of targets are not looked at.

    Returns:
        By round, those at which no source client is missing.
    """
    by_round = _by_round([row for row in rows if row["role"] == SOURCE])
    everybody = {_client(row) for group in by_round.values() for row in group}
    complete = {
        number: group
        for number, group in by_round.items()
        if {_client(row) for row in group if row["accuracy"] is not None} == everybody
    }
    if complete and selection_rule(rows) == LAST_ROUND:
        complete = {max(complete): complete[max(complete)]}
    return {number: _merit(group, number) for number, group in complete.items()}


def lodo_merits(rows: Sequence[Row], inner: Mapping[str, Sequence[Row]]) -> dict[int, Merit]:
    """Judge rounds by the accuracy on each source domain in the run that left it out too, equal weight a domain.

    Args:
        rows: Rows of the run that leaves out the target: which domains are its sources, and which rounds it has.
        inner: By source domain, the rows of the run that leaves out the target and that domain; no other target's
            rows are looked at.

    Returns:
        By round, those at which the run and every one of the inner runs was evaluated; none where one is missing.
    """
    sources = {row["domain"] for row in rows if row["role"] == SOURCE}
    if not sources or sources != set(inner):
        return {}
    numbers = {row["round"] for row in rows if row["role"] == SOURCE}
    for domain, recorded in inner.items():
        numbers &= {number for number in numbers if target_accuracy(recorded, number, domain) is not None}
    held = [row for domain, recorded in inner.items() for row in _target_rows(recorded, domain)]
    by_round = _by_round(held)
    return {number: _merit(by_round[number], number) for number in sorted(numbers)}


def oracle_merits(rows: Sequence[Row], targets: Sequence[str], *, last_round: int) -> dict[int, Merit]:
    """Judge the last round by the target: by its out split, or by the whole of it where the run did not split it.

    No early stopping, as DomainBed has it: the oracle tells settings apart, never rounds.

    Returns:
        The last round alone; nothing where the run did not come to it or a target client failed.
    """
    splits = ("out",) if any(row["split"] == "out" for row in rows) else ("all",)
    group = [row for domain in targets for row in _target_rows(rows, domain, splits) if row["round"] == last_round]
    missing = {row["domain"] for row in group} != set(targets) or any(row["accuracy"] is None for row in group)
    return {} if missing or not group else {last_round: _merit(group, last_round)}


def target_accuracy(rows: Sequence[Row], server_round: int | None, domain: str) -> float | None:
    """Return a target domain's accuracy in [0, 1] at a round, the mean over its clients weighted by examples.

    Of a target that is split, this is the accuracy on its in split.

    Returns:
        None where a client failed or no round was selected.
    """
    mine = [row for row in _target_rows(rows, domain) if row["round"] == server_round]
    if not mine or any(row["accuracy"] is None for row in mine):
        return None
    correct = sum(row["accuracy"] * row["examples"] for row in mine)
    return float(correct / sum(row["examples"] for row in mine))


def source_accuracy(rows: Sequence[Row], server_round: int | None) -> float | None:
    """Return the mean accuracy in [0, 1] of the source domains at a round; None where a client failed."""
    group = [row for row in rows if row["role"] == SOURCE and row["round"] == server_round]
    if not group or any(row["accuracy"] is None for row in group):
        return None
    return _mean_of_domains(group, "accuracy")


def mean_distance(rows: Sequence[Row], server_round: int, name: str) -> float | None:
    """Average an alignment distance over the source domains at a round; None where one has none."""
    values = [row[name] for row in domain_rows(rows) if row["role"] == SOURCE and row["round"] == server_round]
    return sum(values) / len(values) if values and all(value is not None for value in values) else None


def _target_rows(rows: Sequence[Row], domain: str, splits: tuple[str, ...] = ("all", "in")) -> list[Row]:
    return [row for row in rows if row["role"] == TARGET and row["domain"] == domain and row["split"] in splits]


def _by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["round"], []).append(row)
    return groups


def _client(row: Row) -> tuple[str, int]:
    return row["domain"], row.get("client", 0)


def _merit(group: Sequence[Row], server_round: int) -> Merit:
    # A loss that is not finite is null in rounds.jsonl: the worst there is.
    finite = [row | {"loss": math.inf if row["loss"] is None else row["loss"]} for row in group]
    return _mean_of_domains(finite, "accuracy"), -_mean_of_domains(finite, "loss"), -server_round


def _mean_of_domains(rows: Sequence[Row], key: str) -> float:
    """Average over domains with equal weights; clients of one domain count by their examples."""
    domains: dict[str, list[Row]] = {}
    for row in rows:
        domains.setdefault(row["domain"], []).append(row)
    means: list[float] = []
    for mine in domains.values():
        total = sum(row["examples"] for row in mine)
        weighted = sum(row[key] * row["examples"] for row in mine)
        means.append(mine[0][key] if len(mine) == 1 else weighted / total)
    return sum(means) / len(means)
