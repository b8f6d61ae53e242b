"""The recordings of a job, put together as selectors compare them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedhess.domains import Scenario
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.variants import Variant, describe
from fedhess.results.selection import Candidate, Choice, choose, comparable_rounds

MOST_SHOWN = 8  # numbers of rounds

Recorded = Sequence[tuple[PlannedRun, Sequence[Row]]]


@dataclass(frozen=True)
class Cell:
    """One strategy on one target with one seed: the settings that a selector chooses from.

    Attributes:
        scenario: Sources and targets.
        seed: Of the trial.
        variants: Index of each setting among the job's.
        candidates: What each recorded.
    """

    scenario: Scenario
    seed: int
    variants: tuple[int, ...]
    candidates: tuple[Candidate, ...]

    def choose(self, selector: str) -> tuple[Choice | None, Sequence[Row]]:
        """Select, and return the rows of the chosen setting; those of the first where nothing can be chosen."""
        choice = choose(selector, self.candidates, self.scenario.targets)
        return choice, self.candidates[choice.candidate if choice else 0].rows

    def variant(self, choice: Choice | None) -> int | None:
        """Return the index of the chosen setting among the job's."""
        return None if choice is None else self.variants[choice.candidate]

    def gaps(self, variants: Sequence[Variant]) -> list[str]:
        """Name the evaluated rounds that no table can report, and the clients that the others are compared without.

        Args:
            variants: The job's, or none where it has no settings to select among.
        """
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
    """Put the settings of a strategy together, target by target, then seed by seed, as they were planned.

    Args:
        recorded: The job's runs and their rows, those for cross-validation included.
        strategy: Its name.
    """
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
