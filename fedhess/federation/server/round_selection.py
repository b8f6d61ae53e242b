"""Compare the rounds of a run on the sources' held-out examples: this rule never uses a target.

By this rule the server keeps the model of the best round so far, and tables report the best round of all.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhess.domains.benchmark import SOURCE
from fedhess.federation.protocol import client_label
from fedhess.federation.server.run_directory import Row

_Client = tuple[str, int]  # main domain and number among that domain's clients
Merit = tuple[float, float, int]  # accuracy, minus the loss, minus the round: the greatest is the best


@dataclass(frozen=True)
class Candidate:
    """What one setting of a strategy recorded for one target and one seed."""

    rows: Sequence[Row]  # of the run that leaves out the target
    last_round: int  # that the run was configured to train
    # For cross-validation: by source domain, the rows of the run that leaves that domain out as well.
    inner: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    quorum: int = 0  # source clients that have to evaluate a round for it to count; 0 for all


@dataclass(frozen=True)
class Comparable:
    """The rounds that source validation compares, and on which clients."""

    rounds: Sequence[Mapping[int, Sequence[Row]]]  # by candidate and number, rows of the clients common to all rounds
    gaps: Sequence[Sequence[int]]  # by candidate, the numbers of the evaluated rounds that do not count
    absent: Sequence[str]  # source clients that are left out, as messages name them


def select_round(rows: Sequence[Row], *, quorum: int = 0) -> int | None:
    """Choose a round of one run, finished or not, without looking at the target; None where no round counts."""
    (merits,) = source_merits([Candidate(rows, last_round=0, quorum=quorum)])
    return max(merits, key=lambda number: merits[number], default=None)


class BestSoFar:
    """Tracks the round that `select_round` would choose among the rounds of a run so far.

    While every client answers, a round is compared with the best one only: over 500 evaluations the full rule would
    take seconds.
    """

    def __init__(self, *, quorum: int = 0, rows: Sequence[Row] = ()) -> None:
        self._quorum = quorum
        self._rows: list[Row] = []
        self._best: Merit | None = None
        self._missed = self._averaged = False
        for group in rows_by_round(rows).values():
            self.add(group)

    def add(self, rows: Sequence[Row]) -> bool:
        """Add the rows of an evaluated round; return whether it is the selected round so far."""
        group, server_round = source_rows(rows), int(rows[0]["round"])
        self._rows += group
        self._missed = self._missed or any(row["accuracy"] is None for row in group)
        if self._missed:
            return bool(select_round(self._rows, quorum=self._quorum) == server_round)
        if server_round == 0:
            return False
        if not group:  # of a private run, whose sources evaluate nothing
            return True
        merit = merit_of(group, server_round)
        if not self._averaged and group[0].get("averaged"):  # as in `reported_rows`
            self._averaged, self._best = True, None
        if self._best is not None and merit <= self._best and holds_out(group):
            return False
        self._best = merit
        return True


def holds_out(rows: Sequence[Row]) -> bool:
    """Whether the sources are evaluated on examples that they held out."""
    return any(row["role"] == SOURCE and row["split"] == "validation" for row in rows)


def comparable_rounds(candidates: Sequence[Candidate]) -> Comparable:
    """Find the trained rounds that can be compared on the same clients, at least as many as the quorum.

    A client that missed some rounds is left out of all rounds, as long as the quorum remains. If it would not remain,
    the clients that answered together most often decide, and rounds that lack one of them do not count. Without a
    quorum every source client must have evaluated a round.
    """
    by_round = [rows_by_round(source_rows(reported_rows(candidate.rows))) for candidate in candidates]
    held: dict[_Client, set[str]] = {}  # by client, the domains that it evaluates
    for row in (row for groups in by_round for group in groups.values() for row in group):
        held.setdefault(_client(row), set()).add(row["domain"])
    answered: dict[tuple[int, int], frozenset[_Client]] = {}  # by round and candidate
    for index, groups in enumerate(by_round):
        for number, group in groups.items():
            there = {(_client(row), row["domain"]) for row in group if row["accuracy"] is not None}
            if number > 0:
                answered[number, index] = frozenset(
                    client for client, domains in held.items() if all((client, domain) in there for domain in domains)
                )
    needed = max([min(candidate.quorum or len(held), len(held)) for candidate in candidates], default=0)
    times = Counter(answered.values())
    common, rounds = frozenset(held), [dict[int, Sequence[Row]]() for _ in candidates]
    for place in sorted(answered, key=lambda place: (-times[answered[place]], -len(answered[place]), place)):
        number, index = place
        if len(common & answered[place]) >= max(needed, 1):
            common &= answered[place]
            rounds[index][number] = by_round[index][number]
    gaps = [sorted(groups.keys() - rounds[index].keys() - {0}) for index, groups in enumerate(by_round)]
    compared = [
        {number: [row for row in groups[number] if _client(row) in common] for number in sorted(groups)}
        for groups in rounds
    ]
    return Comparable(compared, gaps, [client_label(*client) for client in held if client not in common])


def source_merits(candidates: Sequence[Candidate]) -> list[dict[int, Merit]]:
    """Judge rounds on the sources' held-out examples, with equal weight per domain (training-domain validation set).

    If the sources hold nothing out, only the last comparable round counts; if they evaluate nothing, as in a private
    run, the last round. Returns, by candidate, the rounds that count with their merits; rows of targets are not used.
    """
    merits: list[dict[int, Merit]] = []
    for candidate, rounds in zip(candidates, comparable_rounds(candidates).rounds, strict=True):
        judged = max(rounds) if rounds and not holds_out(candidate.rows) else None
        merits.append({n: merit_of(group, n) for n, group in rounds.items() if judged in (None, n)})
        if not source_rows(candidate.rows) and (last := max((row["round"] for row in candidate.rows), default=0)):
            merits[-1] = {last: (0.0, 0.0, -last)}
    return merits


def reported_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """Leave out the rounds that evaluate the model itself, if later rounds evaluate its average."""
    if not any(row.get("averaged") for row in rows):
        return rows
    return [row for row in rows if row["averaged"]]


def source_rows(rows: Sequence[Row]) -> list[Row]:
    """Keep the rows of source clients with examples to evaluate; the split of their other rows is ``"none"``."""
    return [row for row in rows if row["role"] == SOURCE and row["split"] != "none"]


def rows_by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Group rows by round."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["round"], []).append(row)
    return groups


def _client(row: Row) -> _Client:
    # A client of several domains has a row for each, and a number among those with the same main domain.
    return str(row.get("main_domain", row["domain"])), int(row.get("client", 0))


def merit_of(group: Sequence[Row], server_round: int) -> Merit:
    """Return the merit of a round from the rows that it is judged on.

    A loss that is not finite (null in rounds.jsonl) counts as infinite.
    """
    losses = [row["loss"] for row in group]
    finite = [
        row | {"loss": loss if loss is not None and math.isfinite(loss) else math.inf}
        for row, loss in zip(group, losses, strict=True)
    ]
    return mean_of_domains(finite, "accuracy"), -mean_of_domains(finite, "loss"), -server_round


def mean_of_domains(rows: Sequence[Row], key: str) -> float:
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
