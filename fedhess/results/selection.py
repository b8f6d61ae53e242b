"""Choose what is reported, from recorded rows alone: the round, and the setting where a strategy has several.

The three selectors of Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, as their released
code has them (``model_selection.py``). Two never look at the target; the third is an upper bound that does, and no
default. Deviation: they leave ties open; here the lower loss wins, then the earlier round, then the earlier setting.

Round 0, the model before training, is never selected. Source validation compares rounds on the same clients: see
:func:`comparable_rounds`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhess.base.errors import UsageError
from fedhess.domains import Scenario
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.rows import domain_rows
from fedhess.jobs.selectors import DEFAULT, LAST_ROUND, SOURCE_VALIDATION
from fedhess.jobs.variants import Variant, describe

MOST_SHOWN = 8  # numbers of rounds
_Client = tuple[str, int]  # main domain and number among the clients of it
Merit = tuple[float, float, int]  # accuracy, minus the loss, minus the round: the greatest is the best


@dataclass(frozen=True)
class Candidate:
    """What one setting of a strategy recorded for one target and one seed.

    Attributes:
        rows: Of the run that leaves out the target.
        last_round: Number of rounds it was to train.
        inner: For cross-validation: by source domain, the rows of the run that leaves that one out as well.
        quorum: Source clients that have to evaluate a round for it to count; 0 for all of them.
    """

    rows: Sequence[Row]
    last_round: int
    inner: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    quorum: int = 0


@dataclass(frozen=True)
class Comparable:
    """The rounds that source validation compares, and on whom.

    Attributes:
        rounds: By candidate and number, the rows of the clients that every one of the rounds has.
        gaps: By candidate, the numbers of the evaluated rounds that do not count.
        absent: Source clients that are left out, as messages name them.
    """

    rounds: Sequence[Mapping[int, Sequence[Row]]]
    gaps: Sequence[Sequence[int]]
    absent: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """What a selector chose: the index of a setting, a round, and the accuracy in [0, 1] it was chosen by."""

    candidate: int
    server_round: int
    accuracy: float


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
        merits = source_merits(candidates)
    ranked = [(merit, -number) for number, by_round in enumerate(merits) for merit in by_round.values()]
    if not ranked:
        return None
    (accuracy, _, minus_round), minus_number = max(ranked)
    return Choice(-minus_number, -minus_round, accuracy)


def selection_rule(rows: Sequence[Row]) -> str:
    """Return which rule applies: source validation where the sources hold examples out, else the last round."""
    held_out = any(row["role"] == SOURCE and row["split"] == "validation" for row in rows)
    return SOURCE_VALIDATION if held_out else LAST_ROUND


def select_round(rows: Sequence[Row], *, quorum: int = 0) -> int | None:
    """Choose a round of one run without looking at the target; None where no round counts."""
    choice = choose(DEFAULT, [Candidate(rows, last_round=0, quorum=quorum)], ())
    return None if choice is None else choice.server_round


def comparable_rounds(candidates: Sequence[Candidate]) -> Comparable:
    """Find the trained rounds that can be compared: on the same clients, at least as many as the quorum.

    A client that missed some rounds is left out of all, as long as the quorum is left. Where it would not be, the
    clients that were there together most often decide, and the rounds that miss one of them do not count. Without a
    quorum every source client has to have evaluated a round.

    Args:
        candidates: Settings of one strategy on the same clients.
    """
    by_round = [_by_round(_source_rows(candidate.rows)) for candidate in candidates]
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
    return Comparable(compared, gaps, [_label(client) for client in held if client not in common])


def source_merits(candidates: Sequence[Candidate]) -> list[dict[int, Merit]]:
    """Judge rounds by the sources' held-out examples, equal weight a domain (training-domain validation set).

    Where the sources hold nothing out, the last round that counts is the only one.

    Returns:
        By candidate, its rounds that count; rows of targets are not looked at.
    """
    merits: list[dict[int, Merit]] = []
    for candidate, rounds in zip(candidates, comparable_rounds(candidates).rounds, strict=True):
        judged = max(rounds) if rounds and selection_rule(candidate.rows) == LAST_ROUND else None
        merits.append({n: _merit(group, n) for n, group in rounds.items() if judged in (None, n)})
    return merits


def lodo_merits(rows: Sequence[Row], inner: Mapping[str, Sequence[Row]]) -> dict[int, Merit]:
    """Judge rounds by the accuracy on each source domain in the run that left it out too, equal weight a domain.

    Args:
        rows: Rows of the run that leaves out the target: which domains are its sources, and which rounds it has.
        inner: By source domain, the rows of the run that leaves out the target and that domain; no other target's
            rows are looked at.

    Returns:
        By trained round, those at which the run and every one of the inner runs was evaluated; none where one is
        missing.
    """
    sources = {row["domain"] for row in _source_rows(rows)}
    if not sources or sources != set(inner):
        return {}
    numbers = {row["round"] for row in _source_rows(rows)} - {0}
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


def target_row(rows: Sequence[Row], server_round: int, domain: str) -> Row | None:
    """Return what a target domain's clients recorded together at a round, of its in split if it is split.

    Returns:
        One row, its counts of predictions added up; None where there is no row.
    """
    merged = domain_rows(row for row in _target_rows(rows, domain) if row["round"] == server_round)
    return merged[0] if merged else None


def source_accuracy(rows: Sequence[Row], server_round: int | None) -> float | None:
    """Return the mean accuracy in [0, 1] of the source domains at a round; None where a client failed."""
    group = [row for row in _source_rows(rows) if row["round"] == server_round]
    if not group or any(row["accuracy"] is None for row in group):
        return None
    return _mean_of_domains(group, "accuracy")


def mean_distance(rows: Sequence[Row], server_round: int, name: str) -> float | None:
    """Average an alignment distance over the source domains at a round; None where a client has none."""
    group = [row for row in _source_rows(rows) if row["round"] == server_round]
    if not group or any(row[name] is None for row in group):
        return None
    return _mean_of_domains(group, name)


def _source_rows(rows: Sequence[Row]) -> list[Row]:
    """Keep the rows of source clients; one that holds no example of a domain to evaluate says ``"none"`` there."""
    return [row for row in rows if row["role"] == SOURCE and row["split"] != "none"]


def _target_rows(rows: Sequence[Row], domain: str, splits: tuple[str, ...] = ("all", "in")) -> list[Row]:
    return [row for row in rows if row["role"] == TARGET and row["domain"] == domain and row["split"] in splits]


def _by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["round"], []).append(row)
    return groups


def _client(row: Row) -> _Client:
    # A client of several domains has a row for each, and a number among those with the same main domain.
    return str(row.get("main_domain", row["domain"])), int(row.get("client", 0))


def _label(client: _Client) -> str:
    return client[0] if client[1] == 0 else f"{client[0]}[{client[1]}]"


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


Recorded = Sequence[tuple[PlannedRun, Sequence[Row]]]


@dataclass(frozen=True)
class Cell:
    """One strategy on one target with one seed: the settings that a selector chooses from."""

    scenario: Scenario
    seed: int
    variants: tuple[int, ...]  # index of each setting among the job's
    candidates: tuple[Candidate, ...]  # what each recorded

    def choose(self, selector: str) -> tuple[Choice | None, Sequence[Row]]:
        """Select, and return the rows of the chosen setting; those of the first where nothing can be chosen."""
        choice = choose(selector, self.candidates, self.scenario.targets)
        return choice, self.candidates[choice.candidate if choice else 0].rows

    def variant(self, choice: Choice | None) -> int | None:
        """Return the index of the chosen setting among the job's."""
        return None if choice is None else self.variants[choice.candidate]

    def gaps(self, variants: Sequence[Variant]) -> list[str]:
        """Name the evaluated rounds that no table can report, and the clients that the others are compared without."""
        found = comparable_rounds(self.candidates)
        where = f"target {self.scenario.name}, seed {self.seed}"
        lines: list[str] = []
        for variant, gaps, candidate in zip(self.variants, found.gaps, self.candidates, strict=True):
            if gaps:
                setting = f", {describe(variants[variant])}" if variants else ""
                evaluated = len({row["round"] for row in candidate.rows} - {0})
                shown = ", ".join(map(str, gaps[:MOST_SHOWN])) + (", ..." if len(gaps) > MOST_SHOWN else "")
                lines.append(f"{where}{setting}: {len(gaps)} of {evaluated} evaluated rounds ({shown})")
        if found.absent:
            lines.append(f"{where}: rounds are compared without {', '.join(found.absent)}")
        return lines


def read_rows(job: Job) -> Recorded:
    """Read every run's rows; none of a run that has not begun."""
    return [(run, run.directory.rows() if run.directory.rounds_file.exists() else []) for run in job.runs]


def unfinished(recorded: Recorded) -> list[PlannedRun]:
    """List the runs that have not come to their last round."""
    return [run for run, rows in recorded if not any(row["round"] == run.config.rounds for row in rows)]


def cells_of(recorded: Recorded, strategy: str) -> list[Cell]:
    """Put the settings of a strategy together, target by target, then seed by seed."""
    mine = [(run, rows) for run, rows in recorded if run.strategy == strategy]
    by_targets = {(run.variant, frozenset(run.scenario.targets), run.config.seed): rows for run, rows in mine}
    groups: dict[tuple[str, int], list[tuple[PlannedRun, Sequence[Row]]]] = {}
    for run, rows in mine:
        if not run.inner:
            groups.setdefault((run.scenario.name, run.config.seed), []).append((run, rows))

    def candidate(run: PlannedRun, rows: Sequence[Row]) -> Candidate:
        left_out = frozenset(run.scenario.targets)
        keys = {source: (run.variant, left_out | {source}, run.config.seed) for source in run.scenario.sources}
        inner = {source: by_targets[key] for source, key in keys.items() if key in by_targets}
        return Candidate(rows, run.config.rounds, inner, run.config.quorum)

    return [
        Cell(
            scenario=group[0][0].scenario,
            seed=seed,
            variants=tuple(run.variant for run, _ in group),
            candidates=tuple(candidate(run, rows) for run, rows in group),
        )
        for (_, seed), group in groups.items()
    ]
