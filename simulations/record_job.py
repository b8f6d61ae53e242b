"""Record the tables of a finished job, or of several that make one table, beside those of the scenarios.

    python -m fedhess.sweep --domains EmojiStyles --strategy erm,hgp --draws 8 --trials 3 --out runs/emoji
    python -m fedhess.simulations.record_job runs/emoji --name sweep_emoji_styles

The record has the tables of the job's summary.md and selection.md, the command and the revision that ran it, and no
path of the machine. It shows accuracies by the job's own selector, with differences to ERM paired by seed and their
confidence intervals, the chosen settings, and the same by source validation and by the oracle.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import QUICK_MODELS
from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.jobs.job import Job, history
from fedhess.jobs.merging import merge_jobs
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.selectors import DEFAULT
from fedhess.results.formats import selector_table, table
from fedhess.results.selection import read_rows, unfinished
from fedhess.results.summary import compare_selectors, summarise
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.scenarios.comparison import describe_machine
from fedhess.simulations.scenarios.outputs import (
    RESULTS,
    AllowDirtyOption,
    is_reproducible,
    require_ready,
    write_results,
)

PLACES = ("--out", "--data-dir")  # options whose values are paths of the machine

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def command_line(argv: Sequence[str]) -> str:
    """Return the command of a job without the paths of this machine.

    >>> command_line(["fedhess/sweep.py", "--domains", "Toy", "--out", "runs/a", "--data-dir=data"])
    'fedhess sweep --domains Toy'
    >>> command_line(["/there/simulate.py", "--config", "/a/b.toml", "--variants", "lr=0.1; lr=0.2"])
    "fedhess simulate --config b.toml --variants 'lr=0.1; lr=0.2'"
    """
    name = Path(argv[0]).stem
    words = ["fedhess"] if name in ("fedhess", "__main__") else ["fedhess", name]
    for before, word in pairwise(argv):
        if before not in PLACES and word not in PLACES and not word.startswith(tuple(f"{each}=" for each in PLACES)):
            words.append(re.sub(r"(^|[=:])/(?:[^/]*/)*", r"\1", word))  # only the last part of a path
    return shlex.join(words)


def describe_origin(job: Job) -> list[dict[str, Any]]:
    """Return the origin of a job: command, environment and device of each time it was begun or added to."""
    config = job.runs[0].config
    return [
        {
            "command": command_line(each["command"]),
            "environment": each["environment"],
            "device": device_in(each["environment"], config),
        }
        for each in history(job.record)
    ]


def device_in(environment: Mapping[str, Any], config: RunConfig) -> str:
    """Return the device of a run in a recorded environment: the given one, or the one that ``auto`` selects there."""
    if config.device != "auto":
        return config.device
    quick = config.model in QUICK_MODELS and config.batch_size > 0
    return "cuda" if environment.get("gpu") and not quick else "cpu"


def render(result: Mapping[str, Any]) -> str:
    """Render a record as Markdown."""
    own = result["summaries"][result["selection"]]
    origins = [f"- `{each['command']}`: {describe_machine(each)}" for each in result["origins"]]
    parts = [f"# {result['name']}", *origins, "", table(own), "", selector_table(result["summaries"])]
    return "\n".join(parts)


@cli.command(cls=Command)
def record_job(
    jobs: Annotated[
        list[Path], typer.Argument(help="Directory of a finished job, or of several to put into one table.")
    ],
    name: Annotated[str, typer.Option(help="Name of the files, NAME.json and NAME.md.")],
    out: Annotated[
        Path, typer.Option(help="Folder for them. [default: simulations/results]", show_default=False)
    ] = RESULTS,
    allow_dirty: AllowDirtyOption = False,
) -> None:
    """Write the tables of a finished job where the results of the scenarios are."""
    if not re.fullmatch(r"[\w-]+", name):
        raise UsageError(f"--name: expected letters, digits, - and _, got {name!r}")
    path = out / f"{name}.json"
    require_ready(path, allow_dirty=True, render_only=False)  # what counts is the revision of the job
    opened = [open_recorded(each) for each in jobs]
    origins = [origin for job in opened for origin in describe_origin(job)]
    if not allow_dirty and not all(is_reproducible(origin["environment"]) for origin in origins):
        raise UsageError(
            "results name the revision that made them, and a job ran with uncommitted changes, or outside a git "
            "checkout; run it again from a clean one, or add --allow-dirty (the table then says so)"
        )
    job = merge_jobs(opened)
    recorded = read_rows(job)
    if missing := [run for run in unfinished(recorded) if run.directory.failure() is None]:
        raise UsageError(
            f"expected runs that have ended, or failed (the table says so), got {len(missing)} of {len(recorded)} that "
            "are interrupted: give --resume"
        )
    others = [each for each in (DEFAULT, "oracle") if each != job.selection]
    summaries = {job.selection: summarise(job, recorded)} | compare_selectors(job, recorded, others, leave_out=True)
    result = {
        "name": name,
        "quick": False,
        "selection": job.selection,
        "origins": origins,
        "summaries": summaries,
    }
    write_results(path, result, render(result), indent=1)
    typer.echo(f"{render(result)}\n\nwritten: {path}, {path.with_suffix('.md')}")


if __name__ == "__main__":
    sys.exit(run_command(cli, "record_job"))
