"""A job as Python sees it: rows, table, figures and models. ``fedhess.run`` and ``fedhess.open`` return one."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhess.base.errors import UsageError
from fedhess.jobs.job import Job, PlannedRun
from fedhess.jobs.reopening import open_recorded
from fedhess.models.headed import HeadedModel
from fedhess.results.domain_views import load_model
from fedhess.results.files import write_all
from fedhess.results.formats import format_table
from fedhess.results.selection import read_rows
from fedhess.results.summary import summarise, table, write_report

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The results of a job, finished or not; they are read from its directory.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def path(self) -> Path:
        """The job's directory."""
        return self.job.path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds: protocol, and by strategy the accuracy on each target (percent)."""
        return summarise(self.job)

    @property
    def table(self) -> str:
        """The table in Markdown, with what must be known to read it."""
        return table(self.summary)

    def format(self, form: str) -> str:
        """Return the table in another form, as ``python -m fedhess.report --format`` prints it.

        Args:
            form: ``"markdown"``, ``"latex"`` (with booktabs) or ``"csv"``.

        Raises:
            UsageError: There is no such form.
        """
        return format_table(self.summary, form)

    def report(self) -> list[Path]:
        """Write everything that ``python -m fedhess.report`` writes: tables, a page of HTML, and all figures.

        Returns:
            The files.

        Raises:
            StorageError: They cannot be written.
        """
        return write_all(self.job, read_rows(self.job), self.summary)

    def write(self) -> list[Path]:
        """Write table and figures into the job's directory; ``run`` has done it.

        Returns:
            summary.json, summary.md, and accuracy and alignment distances by round: figures/rounds.png and .svg.

        Raises:
            StorageError: They cannot be written.
        """
        return write_report(self.job, self.summary)

    @property
    def rows(self) -> "pd.DataFrame":
        """Every evaluation of every client: one row a run, round, domain and split.

        Columns are those of rounds.jsonl (docs/data.md) after ``strategy``, ``variant``, ``scenario`` and ``seed`` of
        the run; runs for cross-validation are left out.
        """
        import pandas as pd  # noqa: PLC0415 (half a second that no command needs)

        recorded = [(run, row) for run, rows in read_rows(self.job) if not run.inner for row in rows]
        return pd.DataFrame([_named(run) | row for run, row in recorded])

    def model(self, strategy: str | None = None, target: str | None = None, seed: int | None = None) -> HeadedModel:
        """Load the final model of a finished run, in evaluation mode.

        Args:
            strategy: Of the run; where the job has one it can be left out, like the following.
            target: Name of its target, or targets joined by ``+``.
            seed: Of the trial.

        Raises:
            UsageError: No run or several are meant, or the run is not finished.
        """
        wanted = {"strategy": strategy, "scenario": target, "seed": seed}
        runs = [
            run
            for run in self.job.outer_runs
            if all(value is None or _named(run)[key] == value for key, value in wanted.items())
        ]
        if len(runs) != 1:
            known = "; ".join(f"{run.strategy}, {run.scenario.name}, {run.config.seed}" for run in self.job.outer_runs)
            raise UsageError(
                f"model: expected strategy, target and seed of one run, got those of {len(runs)}; runs: {known}"
            )
        return load_model(runs[0])

    def _repr_markdown_(self) -> str:
        return self.table

    def __repr__(self) -> str:
        return f"Results of {self.path}\n{self.table}"


def _named(run: PlannedRun) -> dict[str, Any]:
    return {"strategy": run.strategy, "variant": run.variant, "scenario": run.scenario.name, "seed": run.config.seed}


def open_results(path: Path | str) -> Results:
    """Open a job that ``fedhess.run``, ``fedhess.simulate`` or a deployed run wrote, finished or not.

    Args:
        path: Its directory, ``runs/NAME``.

    Raises:
        UsageError: There is no job, or its config.json is damaged.
    """
    return Results(open_recorded(Path(path)))
