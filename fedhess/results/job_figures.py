"""The figures of a job beside its table: by round, by bytes, by domain, and which classes are taken for which.

Each is written over two columns of a paper, and but for confusions over one (``NAME-column``), as PNG, SVG and PDF.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.round_selection import rows_by_round
from fedhess.jobs.job import Job
from fedhess.results.columns import Summary, accuracy_columns, cell_of
from fedhess.results.figures import (
    COLOURS,
    SMALL,
    WIDTHS,
    WITH_PDF,
    Panel,
    draw_rounds,
    drawable,
    drawing,
    written,
)
from fedhess.results.selection import Recorded
from fedhess.results.summary import draw_targets, rounds_note, rounds_panels

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "---", "+++")  # tell bars apart without colour
MEGABYTE = 1e6


def draw_figures(job: Job, recorded: Recorded, summary: Summary, panels: Sequence[Panel]) -> list[Path]:
    """Draw every figure of a job into its folder ``figures``."""
    folder, files = job.path / "figures", list[Path]()
    folder.mkdir(exist_ok=True)
    by_round = [panel for panel in panels if panel.across == "round"]
    by_bytes = [panel for panel in panels if panel.across != "round"]
    note = rounds_note(job, summary)
    for ending, width in WIDTHS.items():
        shape: dict[str, Any] = {"width": width, "endings": WITH_PDF}
        title = f"{summary['title']}: accuracy on the target and alignment distances, round by round"
        files += draw_rounds(folder / f"rounds{ending}.png", title=title, note=note, panels=by_round, **shape)
        title = f"{summary['title']}: accuracy on the target by what the sources have exchanged"
        files += draw_rounds(folder / f"bytes{ending}.png", title=title, note=note, panels=by_bytes, **shape)
        files += draw_domains(folder / f"domains{ending}.png", summary, width=width)
    return files + draw_targets(job, recorded, summary, endings=WITH_PDF)


def job_panels(job: Job, recorded: Recorded, summary: Summary) -> list[Panel]:
    """Make the panels of accuracies and distances by round, and those of accuracies by megabytes."""
    panels = rounds_panels(job, summary, recorded)
    moved = {name: megabytes(recorded, name) for name in job.strategies}
    return [
        *panels,
        *(
            Panel(
                panel.label,
                {
                    name: {moved[name][number]: cell for number, cell in curve.items() if number in moved[name]}
                    for name, curve in panel.curves.items()
                },
                across="MB sent and received by the sources",
            )
            for panel in panels
            if not panel.logarithmic
        ),
    ]


def megabytes(recorded: Recorded, strategy: str) -> dict[float, float]:
    """Add up what the source clients have received and sent up to each evaluated round, the mean over a job's runs."""
    totals: dict[float, list[float]] = {}
    for run, rows in recorded:
        if run.strategy == strategy and not run.inner:
            moved = 0.0
            for number, group in sorted(rows_by_round(rows).items()):
                moved += sum(row["bytes_down"] + row["bytes_up"] for row in group if row["role"] == SOURCE)
                totals.setdefault(number, []).append(moved / MEGABYTE)
    return {number: sum(values) / len(values) for number, values in totals.items()}


def draw_domains(path: Path, summary: Summary, *, width: float = WIDTHS[""]) -> list[Path]:
    """Draw a group of bars for each target and their average, one a strategy, with standard errors."""
    columns, strategies = accuracy_columns(summary), list(summary["strategies"])
    across = len(columns) if width >= WIDTHS[""] else 1
    grid = math.ceil(len(columns) / across), across
    size = width / across, 0.3 + 0.9 / grid[0] + 0.15 * len(strategies)
    note = "bars: mean over trials, whiskers: standard error of the mean" if len(summary["seeds"]) > 1 else "one trial"
    note += f"; {len(summary['unfinished'])} of {summary['runs']} runs UNFINISHED" if summary["unfinished"] else ""
    title = f"{summary['title']}: accuracy on each target"
    labels = [drawable(name, f"strategy {number}") for number, name in enumerate(strategies, start=1)]
    shape: dict[str, Any] = {"size": size, "points": SMALL, "endings": WITH_PDF, "sharey": True, "sharex": True}
    with drawing(path, grid, title=title, note=note, names=[*columns, *strategies], **shape) as axes:
        for number, (axis, column) in enumerate(zip(axes.flat, columns, strict=True), start=1):
            for place, result in enumerate(summary["strategies"].values()):
                cell = cell_of(result, column)
                if cell["mean"] is not None:
                    look = {"color": COLOURS[place % len(COLOURS)], "hatch": HATCHES[place % len(HATCHES)]}
                    axis.barh(place, cell["mean"], xerr=cell["standard_error"], edgecolor="white", **look)
                    axis.text(104, place, f"{cell['mean']:.1f}", va="center", fontsize=0.8 * SMALL)
            axis.set_title(drawable(column, f"target {number}"), fontsize=SMALL)
            axis.set_yticks(range(len(labels)), labels)
            axis.set(ylim=(len(labels) - 0.4, -0.6), xlim=(0, 115 if across == 1 else 135), xticks=(0, 50, 100))
        for axis in axes[-1]:
            axis.set_xlabel("accuracy (%)")
    return written(path, WITH_PDF)
