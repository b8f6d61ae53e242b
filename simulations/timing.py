"""Measure what fedhess promises about speed: ``python -m fedhess.simulations.timing``.

Each row gives our figure, the figure it is compared with, the bar it must reach, and the number of measurements behind
our median. Both figures are measured in turn, so that a busy machine slows both. Rows are kept in
``simulations/results/timing.json`` with the environment they came from; ``--only`` measures some and keeps the others.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.cli.command import Command, run_command
from fedhess.simulations.scenarios.outputs import (
    RESULTS,
    AllowDirtyOption,
    RenderOption,
    chosen_names,
    describe_revision,
    read_results,
    require_ready,
    write_results,
)

# Name -> module:function(repeats) -> rows, in fedhess.simulations.benchmarks; imported when asked for.
BENCHMARKS: dict[str, str] = {
    "head": "head:head_rows",
    "engine": "engine:engine_rows",
    "rounds": "rounds:round_rows",
    "main-job": "jobs:main_job_rows",
    "clients": "clients:clients_rows",
    "images": "images:image_rows",
    "references": "jobs:references_rows",
    "parallel": "jobs:parallel_rows",
    "gpu": "gpu:gpu_rows",
}
WITHOUT_GPU = [name for name in BENCHMARKS if name != "gpu"]

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def timing(
    only: Annotated[str, typer.Option(help="Benchmarks, separated by commas; gpu needs a CUDA device.")] = ",".join(
        WITHOUT_GPU
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions behind a median; what is slow takes fewer.")] = 7,
    out: Annotated[Path, typer.Option(help="File for the rows; Markdown goes beside it.")] = RESULTS / "timing.json",
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Run the benchmarks, print a table and write it down."""
    names = chosen_names("--only", only, BENCHMARKS)
    require_ready(out, allow_dirty=allow_dirty, render_only=render_only)
    recorded = read_results(out, render)
    if render_only:
        write_results(out, recorded, render(recorded))
        return
    for name in names:
        module, _, function = BENCHMARKS[name].partition(":")
        measure: Callable[..., Any] = getattr(import_module(f"fedhess.simulations.benchmarks.{module}"), function)
        environment = describe_environment()  # taken before the measurement: it names the code
        rows = measure(repeats=repeats)
        recorded[name] = {"environment": environment, "rows": []}
        for row in rows:  # written as they come, so that a late failure loses none
            recorded[name]["rows"].append(row)
            write_results(out, recorded, render(recorded))
        typer.echo(render({name: recorded[name]}))


def render(recorded: dict[str, Any]) -> str:
    """Render recorded rows as Markdown."""
    lines: list[str] = []
    for name, result in recorded.items():
        machine = result["environment"]
        versions = machine["versions"]
        lines += [
            f"## {name}",
            "",
            f"{machine['platform']}, {machine['cpu_count']} cores, {machine['torch_threads']} threads, "
            f"torch {versions['torch']}, flwr {versions['flwr']}{_gpus(machine.get('gpu'))}; "
            f"{describe_revision(machine)}",
            "",
            "| what | ours | other | ratio | bar | reached | median of |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["rows"]:
            figures = [row["ours"], row.get("other"), row.get("ratio")]
            cells = [
                row["what"],
                *map(_shown, figures),
                row["target"],
                {True: "yes", False: "NO", None: ""}[row["pass"]],
                str(row.get("count", "")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _gpus(found: dict[str, Any] | None) -> str:
    """Name the GPUs of an environment with their software, if it has any."""
    return f", {', '.join(found['names'])}, driver {found['driver']}, cuDNN {found['cudnn']}" if found else ""


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(run_command(cli, "timing"))
