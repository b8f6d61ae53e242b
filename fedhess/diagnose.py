"""Compare the domains of finished runs: ``python -m fedhess.diagnose runs/NAME``.

This runs after training has ended. It opens every domain, including the target, which is labelled so. Under the models
that the tables report, it measures how far each pair of domains is apart in every attribute that methods align.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedhess.base.environment import check_device
from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.cli.options import DataDir, Device
from fedhess.jobs.description import stand_in_warning
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_finished
from fedhess.results.diagnosis import diagnose_job
from fedhess.results.diagnosis_tables import pair_tables, strategy_table, write_diagnosis
from fedhess.results.models import ROUND_HELP, SELECTED

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def diagnose(
    run: Annotated[Path, typer.Argument(help="Directory of a finished job, or of a part of it, down to one run.")],
    examples: Annotated[int, typer.Option(help="At most so many examples of a domain, drawn by the seed.")] = 2048,
    which: Annotated[str, typer.Option("--round", help=ROUND_HELP)] = SELECTED,
    out: Annotated[
        Path | None, typer.Option(help="Where to write. [default: RUN/diagnosis]", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON instead of tables.")] = False,
) -> None:
    """Measure how far the domains of finished runs are apart in loss, gradient, features, HGP and Hessian.

    With several strategies the table says which of them aligns which attribute; tables, CSV and heat maps of every pair
    of domains are in RUN/diagnosis.
    """
    if examples < 2:
        raise UsageError(f"--examples: expected at least 2, got {examples}")
    progress = Progress(silent=quiet or as_json)
    job = open_finished(run, data_dir=data_dir, device=check_device(device))
    progress.warn(stand_in_warning(job))
    config = job.runs[0].config
    progress.header(
        {
            "data": job.data["title"],
            "model": config.model,
            "strategies": ", ".join(job.strategies),
            "targets": ", ".join(dict.fromkeys(planned.scenario.name for planned in job.outer_runs)),
            "seeds": ", ".join(map(str, job.seeds)),
            "examples": f"at most {examples} of every domain's evaluation split",
            "device": f"{config.device_here}, statistics in float64 on the CPU",
            "directory": str(run),
        }
    )
    diagnosis = diagnose_job(job, most_examples=examples, notify=progress.tick, which=which)
    paths = write_diagnosis(out if out is not None else run / "diagnosis", diagnosis)
    if as_json:
        typer.echo(json.dumps(diagnosis, indent=2, allow_nan=False))
        return
    if len(job.strategies) > 1:
        typer.echo(strategy_table(diagnosis))
    else:
        typer.echo("\n\n".join(pair_tables(diagnosis).values()))
    if not quiet:
        typer.echo("\nwritten: " + ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    sys.exit(run_command(cli))
