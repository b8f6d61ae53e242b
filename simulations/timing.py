"""Measure what fedhess promises about speed: ``python -m fedhess.simulations.timing``.

Each row gives our figure, the other it is compared with, and the bar it must reach; medians of several repetitions,
ours and the other interleaved so that a busy machine slows both. Rows are kept in ``simulations/results/timing.json``
with the environment they came from; ``--only`` measures some and keeps the others.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.cli.command import Command, run_command
from fedhess.simulations.scenarios.outputs import (
    AllowDirtyOption,
    RenderOption,
    describe_revision,
    read_results,
    require_ready,
    write_results,
)

RESULTS = Path(__file__).parent / "results"

# Name -> module:function(repeats) -> rows; imported when asked for.
BENCHMARKS: dict[str, str] = {
    "head": "fedhess.simulations.benchmarks.head:head_rows",
    "engine": "fedhess.simulations.benchmarks.engine:engine_rows",
    "rounds": "fedhess.simulations.benchmarks.rounds:round_rows",
    "main-job": "fedhess.simulations.benchmarks.jobs:main_job_rows",
    "clients": "fedhess.simulations.benchmarks.clients:clients_rows",
    "images": "fedhess.simulations.benchmarks.images:image_rows",
    "colored-mnist": "fedhess.simulations.benchmarks.jobs:colored_mnist_rows",
    "references": "fedhess.simulations.benchmarks.jobs:references_rows",
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def timing(
    only: Annotated[str, typer.Option(help=f"Benchmarks, separated by commas: {', '.join(BENCHMARKS)}.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions behind each median.")] = 7,
    out: Annotated[Path, typer.Option(help="File for the rows; Markdown goes beside it.")] = RESULTS / "timing.json",
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Run the benchmarks, print a table and write it down."""
    names = [name.strip() for name in only.split(",") if name.strip()] if only else list(BENCHMARKS)
    if not names:
        raise UsageError(f"--only: expected some of {', '.join(BENCHMARKS)}, got nothing")
    for name in names:
        if name not in BENCHMARKS:
            raise UsageError(f"--only: unknown benchmark {name!r}; {did_you_mean(name, BENCHMARKS)}")
    require_ready(out, allow_dirty=allow_dirty, render_only=render_only)
    recorded = read_results(out, render)
    if render_only:
        write_results(out, recorded, render(recorded), indent=2)
        return
    for name in names:
        module, _, function = BENCHMARKS[name].partition(":")
        measure: Callable[..., list[dict[str, Any]]] = getattr(import_module(module), function)
        environment = describe_environment()  # before the measurement, whose code it names
        recorded[name] = {"environment": environment, "repeats": repeats, "rows": measure(repeats=repeats)}
        typer.echo(render({name: recorded[name]}))
        write_results(out, recorded, render(recorded), indent=2)


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
            f"torch {versions['torch']}, flwr {versions['flwr']}; {describe_revision(machine)}; "
            f"medians of {result['repeats']}",
            "",
            "| what | ours | other | ratio | bar | reached |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["rows"]:
            cells = [row["what"], _shown(row["ours"]), _shown(row.get("other")), _shown(row.get("ratio"))]
            lines.append(
                "| "
                + " | ".join([*cells, str(row["target"]), {True: "yes", False: "NO", None: ""}[row["pass"]]])
                + " |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the command; a mistake of the user ends with one message and status 2."""
    sys.exit(run_command(cli, "timing"))


if __name__ == "__main__":
    main()
