"""Choose what is reported, from recorded rows alone: the round, and the setting if a strategy has several.

The three selectors are those of Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, as in
their released code (``model_selection.py``). Two never look at the target. The third does; it is an upper bound, and no
default. Deviation: they leave ties open; here the lower loss wins, then the earlier round, then the earlier setting.

Round 0, the model before training, is never selected, nor a round before the average that the run reports. Source
validation compares rounds on the same clients: see :func:`comparable_rounds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhess.base.errors import UsageError
from fedhess.domains import Scenario
from fedhess.domains.benchmark import TARGET
from fedhess.federation.server.round_selection import (
    Candidate,
    Merit,
    comparable_rounds,
    holds_out,
    mean_of_domains,
    merit_of,
    reported_rows,
    rows_by_round,
    source_merits,
    source_rows,
)
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.rows import domain_rows
from fedhess.jobs.selectors import LAST_ROUND, SOURCE_VALIDATION
from fedhess.jobs.variants import Variant, describe

MOST_SHOWN = 8  # round numbers in a message


@dataclass(frozen=True)
class Choice:
    """What a selector chose: the index of a setting, a round, and the accuracy in [0, 1] it was chosen by."""

    candidate: int
    server_round: int
    accuracy: float


def choose(selector: str, candidates: Sequence[Candidate], targets: Sequence[str]) -> Choice | None:
    """Choose the best round of the best setting.

    Args:
        selector: A key of `selectors.SELECTORS`.
        candidates: The settings of one strategy, for the same target and seed, in their order.
        targets: The target domains; only the oracle looks at their rows.

    Returns:
        The choice, or None if no round of any setting has the rows that the selector needs.

    Raises:
        UsageError: Source validation must compare settings whose sources held nothing out.
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
    """Return the rule that applies: source validation if the sources hold examples out, else the last round."""
    return SOURCE_VALIDATION if holds_out(rows) else LAST_ROUND


def lodo_merits(rows: Sequence[Row], inner: Mapping[str, Sequence[Row]]) -> dict[int, Merit]:
    """Rate rounds by the accuracy on each source domain in the run that left it out as well, with equal domain weights.

    Args:
        rows: Rows of the run that leaves out the target; they give its source domains and its rounds.
        inner: By source domain, the rows of the run that leaves out the target and that domain; rows on other targets
            are not used.

    Returns:
        Merits by trained round, for rounds at which the run and all inner runs were evaluated; empty if an inner run is
        missing.
    """
    sources = {row["domain"] for row in source_rows(rows)}
    if not sources or sources != set(inner):
        return {}
    numbers = {row["round"] for row in source_rows(reported_rows(rows))} - {0}
    inner = {domain: reported_rows(recorded) for domain, recorded in inner.items()}
    for domain, recorded in inner.items():
        numbers &= {number for number in numbers if target_accuracy(recorded, number, domain) is not None}
    held = [row for domain, recorded in inner.items() for row in _target_rows(recorded, domain)]
    by_round = rows_by_round(held)
    return {number: merit_of(by_round[number], number) for number in sorted(numbers)}


def oracle_merits(rows: Sequence[Row], targets: Sequence[str], *, last_round: int) -> dict[int, Merit]:
    """Rate the last round by the target: by its out split, or by the whole target if the run did not split it.

    There is no early stopping, as in DomainBed: the oracle compares settings, never rounds.

    Returns:
        The last round alone; empty if the run did not reach it or a target client failed.
    """
    splits = ("out",) if any(row["split"] == "out" for row in rows) else ("all",)
    group = [row for domain in targets for row in _target_rows(rows, domain, splits) if row["round"] == last_round]
    missing = {row["domain"] for row in group} != set(targets) or any(row["accuracy"] is None for row in group)
    return {} if missing or not group else {last_round: merit_of(group, last_round)}


def target_accuracy(rows: Sequence[Row], server_round: int | None, domain: str) -> float | None:
    """Return a target domain's accuracy in [0, 1] at a round, the mean over its clients weighted by examples.

    For a split target, this is the accuracy on its in split.

    Returns:
        The accuracy; None if a client failed or no round was selected.
    """
    mine = [row for row in _target_rows(rows, domain) if row["round"] == server_round]
    if not mine or any(row["accuracy"] is None for row in mine):
        return None
    correct = sum(row["accuracy"] * row["examples"] for row in mine)
    return float(correct / sum(row["examples"] for row in mine))


def target_row(rows: Sequence[Row], server_round: int, domain: str) -> Row | None:
    """Return the merged row of a target domain's clients at a round, of its in split if it is split.

    Returns:
        One row, its counts of predictions added up; None if there is no row.
    """
    merged = domain_rows(row for row in _target_rows(rows, domain) if row["round"] == server_round)
    return merged[0] if merged else None


def source_accuracy(rows: Sequence[Row], server_round: int | None) -> float | None:
    """Return the mean accuracy in [0, 1] of the source domains at a round; None if a client failed."""
    group = [row for row in source_rows(rows) if row["round"] == server_round]
    if not group or any(row["accuracy"] is None for row in group):
        return None
    return mean_of_domains(group, "accuracy")


def mean_distance(rows: Sequence[Row], server_round: int, name: str) -> float | None:
    """Average an alignment distance over the source domains at a round; None if a client has none."""
    group = [row for row in source_rows(rows) if row["round"] == server_round]
    if not group or any(row[name] is None for row in group):
        return None
    return mean_of_domains(group, name)


def _target_rows(rows: Sequence[Row], domain: str, splits: tuple[str, ...] = ("all", "in")) -> list[Row]:
    return [row for row in rows if row["role"] == TARGET and row["domain"] == domain and row["split"] in splits]


Recorded = Sequence[tuple[PlannedRun, Sequence[Row]]]


@dataclass(frozen=True)
class Cell:
    """One strategy on one target with one seed: the settings that a selector chooses from."""

    scenario: Scenario
    seed: int
    variants: tuple[int, ...]  # index of each setting among the job's
    candidates: tuple[Candidate, ...]  # the rows of each setting

    def choose(self, selector: str) -> tuple[Choice | None, Sequence[Row]]:
        """Return the choice and the rows of the chosen setting, or of the first setting if nothing can be chosen."""
        choice = choose(selector, self.candidates, self.scenario.targets)
        return choice, self.candidates[choice.candidate if choice else 0].rows

    def variant(self, choice: Choice | None) -> int | None:
        """Return the index of the chosen setting among the job's."""
        return None if choice is None else self.variants[choice.candidate]

    def gaps(self, variants: Sequence[Variant]) -> list[str]:
        """Name the evaluated rounds that no table can report, and the clients without which rounds are compared."""
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
    """Read every run's rows; a run that has not begun has none."""
    return [(run, run.directory.rows()) for run in job.runs]


def unfinished(recorded: Recorded) -> list[PlannedRun]:
    """List the runs that have not reached their last round."""
    return [run for run, rows in recorded if not any(row["round"] == run.config.rounds for row in rows)]


def cells_of(recorded: Recorded, strategy: str) -> list[Cell]:
    """Group the settings of a strategy by seed, from the lowest, and by target."""
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
        for (_, seed), group in sorted(groups.items(), key=lambda item: item[0][1])
    ]
