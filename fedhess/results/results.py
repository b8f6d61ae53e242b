"""A job's results in Python, as ``fedhess.run`` and ``fedhess.open`` return them: rows, table, models, figure files."""

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhess.base.errors import DivergedError, FederationError, StorageError
from fedhess.federation.engines.choice import Engine
from fedhess.jobs.description import describe_failures
from fedhess.jobs.directory import job_directory
from fedhess.jobs.growing import record_growth
from fedhess.jobs.job import Job
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.running import go_back, open_job, run_job
from fedhess.models.headed import HeadedModel
from fedhess.results.export import export_model
from fedhess.results.files import clear_results, write_all, write_report
from fedhess.results.formats import format_table, table
from fedhess.results.models import SELECTED, find_model, narrowed
from fedhess.results.selection import read_rows
from fedhess.results.studies import require_optuna, run_studies
from fedhess.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The results of a job, finished or not, read from its directory."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def path(self) -> Path:
        """The job's directory."""
        return self.job.path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: protocol, and by strategy the accuracy on each target (percent)."""
        return summarise(self.job)

    @property
    def table(self) -> str:
        """The table in Markdown, with the notes needed to read it."""
        return table(self.summary)

    def format(self, form: str) -> str:
        """Return the table in another format, as ``python -m fedhess.report --format`` prints it.

        Args:
            form: ``"markdown"``, ``"latex"`` (with booktabs) or ``"csv"``.

        Raises:
            UsageError: The format is unknown.
        """
        return format_table(self.summary, form)

    def report(self) -> list[Path]:
        """Write everything that ``python -m fedhess.report`` writes: tables, an HTML page, and all figures.

        Raises:
            StorageError: The files cannot be written.
        """
        return write_all(self.job, read_rows(self.job), self.summary)

    def write(self) -> list[Path]:
        """Write table and figures into the job's directory; ``run`` does this, or calls `report` if a page was there.

        Returns:
            summary.json, summary.md, and accuracy and alignment distances by round: figures/rounds.png and .svg.

        Raises:
            StorageError: The files cannot be written.
        """
        return write_report(self.job, self.summary)

    @property
    def rows(self) -> "pd.DataFrame":
        """Every evaluation of every client: one row for each run, round, client, domain and split.

        Columns are those of rounds.jsonl (docs/data.md) after ``strategy``, ``variant``, ``scenario`` and ``seed`` of
        the run; runs for cross-validation are left out.
        """
        import pandas as pd  # noqa: PLC0415 (half a second that no command needs)

        return pd.DataFrame(
            [
                {
                    "strategy": run.strategy,
                    "variant": run.number,
                    "scenario": run.scenario.name,
                    "seed": run.config.seed,
                }
                | row
                for run, rows in read_rows(self.job)
                if not run.inner
                for row in rows
            ]
        )

    def model(
        self,
        strategy: str | None = None,
        target: str | None = None,
        seed: int | None = None,
        *,
        round: str = SELECTED,
    ) -> HeadedModel:
        """Load the model of a finished run that the table reports, in evaluation mode.

        Its inputs are those that clients train on, so embeddings for lite0-features; :func:`fedhess.load` loads a model
        for images.

        Args:
            strategy: The run's strategy; like target and seed, it may be left out if the job has only one.
            target: Name of the run's target, or targets joined by ``+``.
            seed: Seed of the trial.
            round: ``"selected"``; ``"source"``, the round that the run kept by source validation; or ``"last"``.

        Raises:
            UsageError: No run or several runs match, the run is not finished, or it did not keep the model.
        """
        return find_model(narrowed(self.job, strategy=strategy, target=target, seed=seed), round).load()

    def export(
        self,
        out: Path | str | None = None,
        *,
        strategy: str | None = None,
        target: str | None = None,
        seed: int | None = None,
        round: str = SELECTED,
        onnx: bool = False,
    ) -> Path:
        """Write the model of a finished run that the table reports to a folder, for :func:`fedhess.load`.

        Args:
            out: The folder: new, empty or an earlier export; None is ``export`` in the run's directory.
            strategy: The run's strategy; see `model`, also for the following arguments.
            target: Name of the run's target, or targets joined by ``+``.
            seed: Seed of the trial.
            round: See `model`.
            onnx: Write model.onnx too, and check it.

        Raises:
            UsageError: As `model`; or the folder holds something else, or the extra ``onnx`` is missing.
            StorageError: The folder cannot be written.
        """
        job = narrowed(self.job, strategy=strategy, target=target, seed=seed)
        return export_model(job, out=None if out is None else Path(out), which=round, onnx=onnx)

    def _repr_markdown_(self) -> str:
        return self.table

    def __repr__(self) -> str:
        return f"Results of {self.path}\n{self.table}"


def open_results(path: Path | str) -> Results:
    """Open a job that ``fedhess.run``, ``fedhess.simulate`` or a deployed run wrote, finished or not.

    Args:
        path: Its directory, ``runs/NAME``.

    Raises:
        UsageError: There is no job, or its config.json is damaged.
    """
    return Results(open_recorded(Path(path)))


def run_given(given: Mapping[str, Any], *, search: Mapping[str, Any] | None = None, quiet: bool) -> Results:
    """Run the job that a command's options describe; see :func:`fedhess.jobs.running.open_job`."""
    progress = Progress(silent=quiet)
    job, engine = open_job(given, progress, search=search)
    return run_and_report(job, progress, engine)[0]


def run_and_report(job: Job, progress: Progress, engine: Engine) -> tuple[Results, list[Path]]:
    """Run a job while holding its directory; return its results and the files written."""
    if job.search.get("kind") == "optuna":
        require_optuna()
    begun = job.lock is not None
    with job_directory(job.path, job.record, resume=begun, selection=job.selection, lock=job.lock) as changes:
        if changes:
            progress.warn("Continued in another environment; bits may differ: " + "; ".join(changes))
        go_back(job)
        record_growth(job, changed=bool(changes) or job.resume_from is not None)
        try:
            had_page = clear_results(job.path)
            try:
                job, failures = _run(job, progress, engine)
            finally:  # results made during the run lack rows
                had_page |= clear_results(job.path)
            if failures and len(failures) == len(job.runs):
                raise FederationError(describe_failures(job, failures))
            results = Results(job)
            files = results.report() if had_page else results.write()
            if failures and not job.variants:
                raise FederationError(f"{describe_failures(job, failures)}\nThe table of the others is in {files[1]}.")
            return results, files
        except (FederationError, StorageError, KeyboardInterrupt) as error:
            kept = " in" if isinstance(error, DivergedError) else ": continue with --resume --out"
            sys.stderr.write(f"fedhess: stopped; the completed rounds are kept{kept} {job.path}\n")
            raise


def _run(job: Job, progress: Progress, engine: Engine) -> tuple[Job, dict[int, str]]:
    """Run a job; return it with all its settings, and why runs failed, by the number of the run."""
    if job.search.get("kind") != "optuna":
        return job, run_job(job, progress, engine=engine)
    job = run_studies(job, progress, engine=engine)
    reasons = {number: run.directory.failure() for number, run in enumerate(job.runs)}
    return job, {number: reason for number, reason in reasons.items() if reason is not None}
