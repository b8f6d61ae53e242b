"""Accuracy against epsilon: ERM, HGP and Hutchinson under differential privacy, on ColoredMNIST and IconPACS.

    python -m fedhess.simulations.privacy                                    # everything: half an hour
    python -m fedhess.simulations.privacy --strategy erm --seeds 0,1         # a part; results merge
    python -m fedhess.simulations.privacy --quick

Every client clips and adds noise itself, at example level where that exists (the statistics). All methods in a row of
the table have the same epsilon, so a method that asks for statistics has more noise in each reply. Clipping bounds are
about the median norm of what an ordinary run of the method sends; it was looked up once, and epsilon does not count it.
Both benchmarks are small: ColoredMNIST has 2,000 examples a domain and 60 rounds, annealing after 20; IconPACS has one
target and 15 rounds.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from fedhess.base.files import writing
from fedhess.base.tables import markdown_table, shown
from fedhess.cli.command import Command, run_command
from fedhess.results.figures import drawing, line_look, written
from fedhess.simulations.scenarios.comparison import (
    Comparison,
    describe_machine,
    heading,
    shared_protocol,
    tables,
    troubles,
)
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.outputs import chosen_names
from fedhess.simulations.scenarios.records import Line, Record, lines_of
from fedhess.simulations.scenarios.running import (
    Options,
    SeedsOption,
    plan,
    read_seeds,
    run_scenario,
    shorten,
    with_options,
)

SENT: Mapping[str, Sequence[str]] = {  # by strategy, what its clients send
    "erm": ("update",),
    "hgp": ("update", "gradient", "hvp"),
    "hutchinson": ("update", "gradient", "diagonal"),
}
EPSILONS: Mapping[str, Sequence[float]] = {
    "ColoredMNIST": (1e3, 1e4, 1e5, 1e6, 1e7),
    "IconPACS": (1e1, 1e2, 1e3, 1e4, 1e5),
}
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "ColoredMNIST": {"update": 0.5, "gradient": 0.7, "hvp": 0.1, "diagonal": 0.25},
    "IconPACS": {"update": 0.2, "gradient": 4.0, "hvp": 2.0, "diagonal": 2.0},
}
DELTA = 1e-5
EXAMPLES, ANNEALED = 2000, 20  # of ColoredMNIST
ROUNDS = {"ColoredMNIST": 60, "IconPACS": 15}
QUICK_EXAMPLES, QUICK_ROUNDS = 100, 4

COMPARISON = Comparison(name="privacy", title="Accuracy against epsilon", published={}, average=False)

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def configurations(
    *,
    strategies: Sequence[str] = tuple(SENT),
    seeds: Sequence[int] = (0,),
    per_domain: int = 0,
    quick: bool = False,
) -> list[Configuration]:
    """List the jobs: every strategy without privacy, then with each epsilon of the benchmark."""
    jobs = []
    for planned in plan({"ColoredMNIST": {"per_domain": per_domain or EXAMPLES}, "IconPACS": {}}, strategies, seeds):
        job = planned if planned.benchmark == "ColoredMNIST" else replace(planned, target="sketch")
        rounds, annealed = (QUICK_ROUNDS, 1) if quick else (ROUNDS[job.benchmark], ANNEALED)
        job = shorten(job, rounds=rounds, annealed=annealed)
        bounds = {name: BOUNDS[job.benchmark][name] for name in SENT[job.strategy]}
        private = {"dp_delta": DELTA, "dp_clip": bounds, "dp_unit": "example"}
        budgets = [{**private, "dp_epsilon": epsilon} for epsilon in EPSILONS[job.benchmark]]
        jobs += [replace(job, overrides={**job.overrides, **budget}) for budget in ({}, *budgets)]
    return jobs


def render(comparison: Comparison, record: Record) -> str:
    """Render a table for each benchmark: a row for each epsilon, a column for each strategy and target."""
    text = [f"# {comparison.title}", ""]
    text += ["QUICK: few examples and rounds. These numbers are no results.", ""] if record["quick"] else []
    text += [
        f"Accuracy (%) on the target, mean +- standard error over seeds; epsilon of each source client's run at delta "
        f"{DELTA:g}. Made by `python -m fedhess.simulations.privacy{' --quick' if record['quick'] else ''}`."
    ]
    for rows in tables(record):
        lines = lines_of(rows)
        targets = _targets(lines)
        heads = ["epsilon", *(f"{name}, {target}" for target in targets for name in _strategies(lines))]
        found = {(_epsilon(line), line.strategy): line for line in lines}
        table = [
            [
                "none (no privacy)" if epsilon == math.inf else f"{epsilon:,.0f}",
                *(_cell(found.get((epsilon, name)), target) for target in targets for name in _strategies(lines)),
            ]
            for epsilon in sorted({_epsilon(line) for line in lines}, reverse=True)
        ]
        text += ["", f"## {heading(rows)}", "", markdown_table(heads, table), ""]
        seeds = ", ".join(map(str, sorted({seed for line in lines for seed in line.seeds})))
        of_private = sorted(epsilon for epsilon in map(_epsilon, lines) if epsilon < math.inf)[:1]
        for name, epsilon in (
            ("without privacy", math.inf),
            *(("with the smallest epsilon", each) for each in of_private),
        ):
            mine = [line for line in lines if _epsilon(line) == epsilon]
            text += [f"- {name}: {shared_protocol(mine)}; seeds {seeds}"] if mine else []
        text += [f"- {each}" for each in troubles(lines)]
        text += [f"- {line}" for line in dict.fromkeys(map(describe_machine, rows))]
    return "\n".join(text)


def draw(comparison: Comparison, record: Record, path: Path) -> list[Path]:
    """Draw accuracy against epsilon, a panel for each target; a horizontal line is the method without privacy."""
    panels = [
        (rows[0]["benchmark"], target, lines)
        for rows in tables(record)
        for lines in [[line for line in lines_of(rows) if line.cells]]
        for target in _targets(lines)
    ]
    if not panels:
        return []
    title = comparison.title + (" (QUICK: no result)" if record["quick"] else "")
    note = "bars: standard error over seeds, where there are several; horizontal: the same method without privacy"
    with writing(path), drawing(path, (1, len(panels)), size=(4, 3), title=title, note=note) as axes:
        for (benchmark, target, lines), axis in zip(panels, axes[0], strict=True):
            for number, name in enumerate(_strategies(lines)):
                mine = sorted((_epsilon(line), line.cells[target]) for line in lines if line.strategy == name)
                _draw_method(axis, name, number, mine)
            axis.set(xscale="log", xlabel="epsilon", ylabel="accuracy (%)", title=f"{benchmark}: {target}")
            axis.grid(alpha=0.3)
    return written(path)


def _draw_method(axis: Any, name: str, number: int, points: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
    look = line_look(number)
    private = [(epsilon, cell) for epsilon, cell in points if epsilon < math.inf]
    epsilons, means = [epsilon for epsilon, _ in private], [cell["mean"] for _, cell in private]
    axis.errorbar(epsilons, means, yerr=[cell["standard_error"] or 0.0 for _, cell in private], label=name, **look)
    for _, cell in points[len(private) :]:
        axis.axhline(cell["mean"], color=look["color"], linewidth=0.8)


def _epsilon(line: Line) -> float:
    return float(line.settings["dp_epsilon"]) or math.inf


def _strategies(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.strategy for line in lines))


def _targets(lines: Sequence[Line]) -> list[str]:
    """List the columns of targets: sources of a private run have no accuracy."""
    columns = dict.fromkeys(column for line in lines for column in line.cells)
    return [column for column in columns if column not in ("sources", "average")]


def _cell(line: Line | None, target: str) -> str:
    return "n/a" if line is None or target not in line.cells else shown(line.cells[target])


@cli.command(cls=Command)
@with_options
def privacy(options: Options, seeds: SeedsOption = "0,1,2") -> None:
    """Train with several budgets of differential privacy, and draw accuracy against epsilon."""
    examples, strategies = options.examples(quick=QUICK_EXAMPLES), list(SENT)
    if options.strategy != "all":
        strategies = chosen_names("--strategy", options.strategy, SENT)
    jobs = configurations(strategies=strategies, seeds=read_seeds(seeds), per_domain=examples, quick=options.quick)
    run_scenario(COMPARISON, jobs, options, render=render, draw=draw)


if __name__ == "__main__":
    sys.exit(run_command(cli, "privacy"))
