"""Watch memory, open files and seconds a round of long federations: ``python -m fedhess.simulations.load``.

Two loads of a small model (0.7 MB on the wire, IconPACS): many clients in one process, and real SuperNodes on loopback
with TLS and authentication. Every process is watched from outside, and the last third of the rounds is compared with
the third before; the first third warms up.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.base.files import writing
from fedhess.cli.command import Command, run_command
from fedhess.results.figures import drawing, line_look, marked
from fedhess.simulations.benchmarks.watching import Watched, watch
from fedhess.simulations.scenarios.outputs import (
    RESULTS,
    AllowDirtyOption,
    RenderOption,
    chosen_names,
    describe_environment_of,
    read_results,
    require_ready,
    write_results,
)

TARGET = "sketch"
IN_PROCESS, DEPLOYED = "in-process", "deployed"
# Largest allowed ratio of the last third to the middle third.
BARS = {"memory (MB)": 1.05, "open files": 1.05, "a round (s)": 1.2, "processes": 1.05}
LEAST_ROUNDS = 6

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def load(
    only: Annotated[str, typer.Option(help=f"{IN_PROCESS}, {DEPLOYED}, or both.")] = f"{IN_PROCESS},{DEPLOYED}",
    clients: Annotated[int, typer.Option(min=3, help="Source clients in one process.")] = 200,
    rounds: Annotated[int, typer.Option(min=LEAST_ROUNDS, help="Their rounds.")] = 50,
    nodes: Annotated[int, typer.Option(min=4, help="SuperNodes, one of them the target's.")] = 8,
    node_rounds: Annotated[int, typer.Option(min=LEAST_ROUNDS, help="Their rounds.")] = 10,
    out: Annotated[Path, typer.Option(help="File for the figures; Markdown and a plot go beside it.")] = RESULTS
    / "load.json",
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Run both loads, print what grew, and write it down with a plot."""
    names = chosen_names("--only", only, (IN_PROCESS, DEPLOYED))
    require_ready(out, allow_dirty=allow_dirty, render_only=render_only)
    recorded = read_results(out, render)
    if render_only:
        _write(out, recorded)
        return
    for name in names:
        environment = describe_environment()  # taken before the measurement: it names the code
        with tempfile.TemporaryDirectory() as folder:
            if name == IN_PROCESS:
                what = f"{clients} clients in one process, {rounds} rounds"
                watched = many_clients(Path(folder) / "job", clients=clients, rounds=rounds)
            else:
                what = f"{nodes} SuperNodes, {node_rounds} rounds"
                watched = real_nodes(Path(folder) / "job", nodes=nodes, rounds=node_rounds)
        series = {label: [round(value, 3) for value in values] for label, values in watched.series().items()}
        recorded[name] = {"what": what, "environment": environment, "series": series}
        typer.echo(render({name: recorded[name]}))
        _write(out, recorded)


def _write(out: Path, recorded: dict[str, Any]) -> None:
    write_results(out, recorded, render(recorded), indent=1)
    with writing(out):
        draw(out.with_suffix(".png"), recorded)


def many_clients(out: Path, *, clients: int, rounds: int) -> Watched:
    """Run HGP with many clients of three mixed domains in one process, every round evaluated and checkpointed."""
    command = [sys.executable, "-m", "fedhess.simulate", "--domains", "IconPACS", "--target", TARGET]
    command += ["--strategy", "hgp", "--partition", "lambda", "--clients", str(clients), "--heterogeneity", "0.5"]
    command += ["--rounds", str(rounds), "--local-steps", "1", "--evaluate-every", "1", "--checkpoint-every", "1"]
    command += ["--trials", "1", "--quiet", "--out", str(out)]
    return watch(command, rounds=out / TARGET / "0" / "rounds.jsonl")


def real_nodes(out: Path, *, nodes: int, rounds: int) -> Watched:
    """Run HGP on a SuperLink and real SuperNodes, every round evaluated and checkpointed."""
    settings = f'partition="lambda" clients={nodes - 1} heterogeneity=0.5 local-steps=1'
    settings += " evaluate-every=1 checkpoint-every=1 threads=1"
    command = [sys.executable, "-m", "fedhess.deploy", "local", "--domains", "IconPACS", "--target", TARGET]
    command += ["--strategy", "hgp", "--rounds", str(rounds), "--run-config", settings, "--out", str(out)]
    rows = out / "results" / TARGET / "0" / "rounds.jsonl"
    # One thread per process: with so many processes, more threads would wait for one another.
    return watch(command, rounds=rows, environment={"OMP_NUM_THREADS": "1"})


def growth(values: Sequence[float]) -> float:
    """Compare the last third of the rounds with the third before it, by their means.

    >>> growth([9, 9, 1, 1, 1.5, 1.5]), growth([4, 4, 4])
    (1.5, 1.0)
    """
    middle, last = _thirds(values)
    return last / middle


def _thirds(values: Sequence[float]) -> tuple[float, float]:
    third = len(values) // 3
    return statistics.mean(values[-2 * third : -third]), statistics.mean(values[-third:])


def render(recorded: Mapping[str, Any]) -> str:
    """Render recorded loads as Markdown."""
    lines: list[str] = []
    for result in recorded.values():
        lines += [
            f"## {result['what']}",
            "",
            "HGP on IconPACS, lite0-features, evaluation and checkpoint every round; "
            f"{describe_environment_of(result)} Memory and files are the most that a round saw, of processes that live "
            "through the run.",
            "",
            "| what | first round | middle third | last third | growth | at most | reached |",
            "|---|---|---|---|---|---|---|",
        ]
        for label, values in result["series"].items():
            (middle, last), ratio = _thirds(values), growth(values)
            most = BARS[label.rpartition(": ")[2]]
            cells = [label, *(f"{value:.4g}" for value in (values[0], middle, last)), f"{ratio:.3f}", str(most)]
            lines.append(f"| {' | '.join(cells)} | {'yes' if ratio <= most else 'NO'} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def draw(path: Path, recorded: Mapping[str, Any]) -> None:
    """Draw every load: a column each, with memory, open files and seconds by round."""
    kinds = ("memory (MB)", "open files", "a round (s)")
    labels = dict.fromkeys(label.partition(":")[0] for result in recorded.values() for label in result["series"])
    programs = [label for label in labels if label not in ("a round (s)", "processes")]
    note = "a line a program; one run each, so there is no error to show"
    with drawing(
        path, (len(kinds), len(recorded)), size=(5.5, 2.4), title="Load of long federations", note=note, sharex="col"
    ) as axes:
        for column, result in zip(axes.T, recorded.values(), strict=True):
            for kind, axis in zip(kinds, column, strict=True):
                for label, values in result["series"].items():
                    program, _, of = label.partition(": ")
                    if kind in (of, label):
                        look = line_look(programs.index(program) if of else len(programs))
                        name = program if of else "whole federation"
                        axis.plot(range(1, len(values) + 1), values, label=name, **look, **marked(len(values)))
                axis.set_ylim(0, 1.1 * axis.dataLim.y1)
                axis.set_ylabel({"a round (s)": "seconds a round"}.get(kind, kind))
                axis.grid(alpha=0.3)
            column[0].set_title(result["what"], fontsize=10)
            column[-1].set_xlabel("round")


if __name__ == "__main__":
    sys.exit(run_command(cli, "load"))
