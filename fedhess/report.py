"""Make tables and figures from the rounds.jsonl files of a job: ``python -m fedhess.report runs/NAME``.

A running job does not need this command. It needs only the rows of a job: no data, no model, no checkpoint.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.jobs.description import stand_in_warning
from fedhess.jobs.merging import merge_jobs
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.selectors import read_selectors
from fedhess.jobs.tracking import read_trackers, track_recorded
from fedhess.results.files import write_all, write_selection
from fedhess.results.formats import FORMATS, format_table, selector_table, table
from fedhess.results.run_states import list_runs, states_table
from fedhess.results.selection import read_rows, unfinished
from fedhess.results.sent import sent_section
from fedhess.results.summary import compare_selectors

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directory of a job, or of several to put into one table.")],
    selection: Annotated[
        str | None,
        typer.Option(
            help="What to select by: source, lodo, oracle, several by commas, or all. [default: what the job has]"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help=f"Only print the table, as {', '.join(FORMATS)}."),
    ] = None,
    track: Annotated[
        str, typer.Option(help="Trackers to feed with what the rows have: tensorboard, wandb, mlflow, trackio.")
    ] = "",
    states: Annotated[
        bool, typer.Option("--list-runs", help="Print where every run is, and how accurate it is so far, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Make the tables of a recorded job again, or compare what the selectors choose.

    By the selector that the job was run with, everything in the job's directory that shows its results is made again:
    summary.md and .json, table.tex and .csv, report.html, which needs no other file, and the figures. Otherwise
    selection.md has a column for each selector; all leaves out one that the job has no runs for, and names it. The
    oracle looks at the target, and its column is headed so.

    Several jobs of one protocol make one table, in a directory named after them all; jobs that differ in more than
    strategies, targets, seeds and what a method does in a round are refused.
    """
    progress = Progress(silent=quiet or as_json or form is not None)  # only the table is printed
    if states:
        _check_alone({"--selection": selection, "--format": form, "--track": track})
        listed = {str(path): list_runs(open_recorded(path, inner=True)) for path in runs}
        typer.echo(json.dumps(listed, indent=2) if as_json else states_table(listed))
        return
    job = replace(merge_jobs([open_recorded(path) for path in runs]), trackers=read_trackers(track))
    selectors = [job.selection] if selection is None else read_selectors(selection)
    if form is not None:
        _check_form(form, selectors, as_json=as_json)
    recorded = read_rows(job)
    progress.warn(stand_in_warning(job))
    if missing := unfinished(recorded):
        progress.warn(f"{len(missing)} of {len(recorded)} runs are not finished, the first {missing[0].directory.path}")
    track_recorded(job, progress.warn)
    compared = compare_selectors(job, recorded, selectors, leave_out=selection == "all")
    if form is not None:
        typer.echo(format_table(compared[selectors[0]], form))
        return
    if selectors == [job.selection]:
        summary = compared[job.selection]
        text, paths = "\n".join([table(summary), *sent_section(summary)]), write_all(job, recorded, summary)
    else:
        text, paths = selector_table(compared), write_selection(job, compared)
    if as_json:
        typer.echo(json.dumps(compared, indent=2, allow_nan=False))
        return
    typer.echo(text)
    if not quiet:
        figures = [path for path in paths if path.parent != job.path]
        more = f" and {len(figures)} figures in {figures[0].parent}" if figures else ""
        typer.echo(f"\nwritten: {', '.join(str(path) for path in paths if path not in figures)}{more}")


def _check_alone(others: Mapping[str, str | None]) -> None:
    for option, value in others.items():
        if value:
            raise UsageError(f"--list-runs prints the states of runs alone; leave out {option} {value}")


def _check_form(form: str, selectors: Sequence[str], *, as_json: bool) -> None:
    if len(selectors) > 1:
        raise UsageError(f"--format: expected one selector to print, got {', '.join(selectors)}; name one: --selection")
    if as_json:
        raise UsageError(f"--format {form} and --json are two forms; give one of them")


if __name__ == "__main__":
    sys.exit(run_command(cli))
