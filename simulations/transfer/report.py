"""Table and figure of the transfer measures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.base.tables import markdown_table
from fedhess.results.figures import COLOURS, drawable, drawing
from fedhess.simulations.scenarios.outputs import describe_revision

COLUMNS = 4


def render(result: Mapping[str, Any]) -> str:
    """Render the results of :mod:`fedhess.simulations.transferability` as Markdown."""
    points, heads = [], []
    for strategy, runs in by_strategy(result).items():
        heads.append([strategy, *(_mean(runs, key, digits=3) for key in ("source_loss", "target_loss", "excess_gap"))])
        heads[-1] += [_mean(runs, "head_norm", digits=3), f"{100 * float(_mean(runs, 'target_accuracy')):.1f}"]
        for number, point in enumerate(mean_points(runs)):
            row = [f"{point['delta']:g}", *(f"{point[key]:.4g}" for key in ("tilted", "bound"))]
            row += [f"{point['tilted'] / point['bound']:.3f}" if point["bound"] > 0 else "n/a"]
            row += [f"{point[key]:.4g}" for key in ("actual", "actual_bound")]
            points.append([strategy if number == 0 else "", *row])
    scope = "quick run: " if result["quick"] else ""
    machine = result["environment"]
    return "\n".join(
        [
            f"## Transfer measure, {result['title']}",
            "",
            f"{scope}{result['protocol']}; targets {', '.join(result['targets'])}; {result['examples']}",
            *(f"trained at {_revision(each)}" for each in result.get("trained", ())),
            f"{'measured at ' if result.get('trained') else ''}{_revision(machine)}",
            f"published: {result['published']}",
            "",
            f"At the trained heads (mean over {len(result['targets'])} target(s), {len(result['seeds'])} trial(s)):",
            "",
            markdown_table(
                ["method", "source loss", "target loss", "excess gap", "head norm", "target accuracy (%)"], heads
            ),
            "",
            "Over balls of heads of radius delta. The bound delta^2/2 ||H_T - H_S||_2 assumes a head optimal for both",
            "domains: `measure` is that of the losses without their linear terms, which satisfy this, and may exceed",
            "the bound by terms of third order alone. `actual` is that of the losses as they are, zero at the trained",
            "head; its bound adds delta ||g_T - g_S||. With the excess gap added, it is the measure as defined.",
            "",
            markdown_table(
                ["method", "delta", "measure", "bound", "measure/bound", "actual", "bound with gradients"], points
            ),
        ]
    )


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draw measures and bounds over delta, one panel a method, all on one scale."""
    groups = by_strategy(result)
    columns = min(COLUMNS, len(groups))
    shape = (math.ceil(len(groups) / columns), columns)
    lines = {
        "bound": ("bound", {"color": COLOURS[0], "linestyle": "--"}),
        "tilted": ("measure, no linear terms", {"color": COLOURS[0], "marker": "o"}),
        "actual_bound": ("bound with gradients", {"color": COLOURS[1], "linestyle": ":"}),
        "actual": ("measure, losses as they are", {"color": COLOURS[1], "marker": "s"}),
    }
    title = f"{result['title']}: how far heads transfer from the sources to the target"
    note = (
        f"mean over {len(result['targets'])} target(s) and {len(result['seeds'])} trial(s), seeds "
        f"{', '.join(map(str, result['seeds']))}; means alone, no error bars"
    )
    with drawing(path, shape, size=(3.6, 3.2), title=title, note=note, names=groups, sharex=True, sharey=True) as axes:
        for number, (axis, (strategy, runs)) in enumerate(zip(axes.flat, groups.items(), strict=False), start=1):
            points = mean_points(runs)
            for key, (label, look) in lines.items():
                axis.loglog([p["delta"] for p in points], [p[key] for p in points], label=label, **look)
            axis.set_title(drawable(strategy, f"method {number}"), fontsize=10)
            if number > len(groups) - columns:  # the last of its column
                axis.set_xlabel("delta, radius of the ball of heads")
                axis.tick_params(labelbottom=True)
            axis.grid(alpha=0.3)
        for axis in axes[:, 0]:
            axis.set_ylabel("transfer measure")


def by_strategy(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Group the runs by strategy, in their order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in result["runs"]:
        groups.setdefault(run["strategy"], []).append(run)
    return groups


def mean_points(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Average the points of several runs, radius by radius."""
    return [
        {key: sum(run["points"][number][key] for run in runs) / len(runs) for key in point}
        for number, point in enumerate(runs[0]["points"])
    ]


def _revision(environment: Mapping[str, Any]) -> str:
    return f"{describe_revision(environment)}, torch {environment['versions']['torch']}"


def _mean(runs: Sequence[Mapping[str, Any]], key: str, *, digits: int = 17) -> str:
    value = sum(run[key] for run in runs) / len(runs)
    return f"{value:.{digits}g}"
