"""Write a finished run's model to a folder: ``fedhess export runs/NAME``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedhess.cli.command import Command, run_command

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished job, or of one strategy, target or run in it.")],
    strategy: Annotated[str | None, typer.Option(help="Of the run, where there are several.")] = None,
    target: Annotated[str | None, typer.Option(help="Of the run, where there are several.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the run, where there are several.")] = None,
    which: Annotated[
        str,
        typer.Option(
            "--round",
            help="Which round's model: selected, the one that the job's tables report; source, the one that the run "
            "kept by source validation; or last.",
        ),
    ] = "selected",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write. [default: export in the run's directory]", show_default=False),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, and check it.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the folder.")] = False,
) -> None:
    """Write the model that a table reports: weights, classes, preprocessing and a card with data, protocol and scores.

    The network is whole, a frozen backbone included. fedhess predict and fedhess.load read the folder, anywhere.
    """
    from fedhess.jobs.description import stand_in_warning
    from fedhess.jobs.progress import Progress
    from fedhess.jobs.reopening import open_runs
    from fedhess.results.export import export_model
    from fedhess.results.models import find_model, narrowed

    job = narrowed(open_runs(run), strategy=strategy, target=target, seed=seed)
    progress = Progress(silent=quiet)
    progress.warn(stand_in_warning(job))
    found = find_model(job, which)
    progress.header(
        {
            "data": job.data["title"],
            "model": found.run.config.model,
            "run": f"{found.run.strategy}, target {found.run.scenario.name}, seed {found.run.config.seed}",
            "round": f"{found.server_round} of {found.run.config.rounds}, chosen by {found.chosen_by}",
        }
    )
    folder = export_model(job, out=out, which=which, onnx=onnx)
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    typer.echo(str(folder) if quiet else f"written to {folder}: {written}")


if __name__ == "__main__":
    sys.exit(run_command(cli))
