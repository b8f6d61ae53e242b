"""The result files in a job's directory: written from the rows, and removed when the rows change.

There are figures by round, by bytes and by domain, and confusion matrices. `write_all` makes each for two columns of a
paper and, except confusion matrices, for one column (``NAME-column``), as PNG, SVG and PDF.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhess.base.files import replace_file, writing
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.round_selection import rows_by_round
from fedhess.jobs.job import Job, slug
from fedhess.jobs.metrics import Confusion
from fedhess.results.counts import confusions
from fedhess.results.figures import (
    COLOURS,
    SMALL,
    WIDTHS,
    WITH_PDF,
    Panel,
    draw_confusions,
    draw_rounds,
    drawable,
    drawing,
    trained_rounds,
    written,
)
from fedhess.results.formats import Summary, accuracy_columns, cell_of, csv_table, latex_table, selector_table, table
from fedhess.results.page import render_page
from fedhess.results.selection import Recorded, cells_of, read_rows
from fedhess.results.sent import sent_section
from fedhess.results.summary import DISTANCES, name_columns

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "---", "+++")  # tell bars apart without colour
MEGABYTE = 1e6
PAGE = "report.html"
FIGURES = (*(f"{name}{width}" for name in ("rounds", "bytes", "domains") for width in WIDTHS), "confusion_*")
RESULTS = (
    *("summary.json", "summary.md", "selection.json", "selection.md", "table.tex", "table.csv", PAGE),
    *(f"figures/{name}{ending}" for name in FIGURES for ending in WITH_PDF),
)


def clear_results(path: Path) -> bool:
    """Remove all results from a job's directory, because its rows change; return whether a page was there."""
    there = [file for pattern in RESULTS for file in path.glob(pattern)]
    with writing(path):
        for file in there:
            file.unlink()
    return path / PAGE in there


def write_all(job: Job, recorded: Recorded, summary: Summary) -> list[Path]:
    """Write the summary, table.tex, table.csv, report.html and every figure; their titles name a stand-in."""
    panels, confused = job_panels(job, recorded, summary), target_confusions(job, recorded)
    texts = {
        "table.tex": latex_table(summary),
        "table.csv": csv_table(summary),
        PAGE: render_page(job, summary, panels, confused),
    }
    written = write_summary(job, summary)
    with writing(job.path):
        for name, text in texts.items():
            replace_file(job.path / name, (text.rstrip("\n") + "\n").encode())
            written.append(job.path / name)
        written += draw_figures(job, recorded, summary, panels)
    return written


def write_report(job: Job, summary: Summary) -> list[Path]:
    """Write summary.json, summary.md and, as PNG and SVG, figures/rounds; titles name a stand-in."""
    files = write_summary(job, summary)
    figure = job.path / "figures" / "rounds.png"
    with writing(job.path):
        figure.parent.mkdir(exist_ok=True)
        title = f"{summary['title']}: accuracy on the target and alignment distances, round by round"
        panels = rounds_panels(job, summary, read_rows(job))
        return files + draw_rounds(figure, title=title, note=rounds_note(job, summary), panels=panels)


def write_summary(job: Job, summary: Summary) -> list[Path]:
    """Write summary.json, and summary.md with the table and the records that were sent."""
    return _write_both(job, "summary", summary, "\n".join([table(summary), *sent_section(summary)]))


def write_selection(job: Job, compared: Summary) -> list[Path]:
    """Write selection.json and selection.md; their titles name a stand-in."""
    return _write_both(job, "selection", compared, selector_table(compared))


def _write_both(job: Job, name: str, content: Summary, text: str) -> list[Path]:
    as_json, as_text = job.path / f"{name}.json", job.path / f"{name}.md"
    with writing(job.path):
        job.path.mkdir(parents=True, exist_ok=True)  # the directory of merged jobs may not exist yet
        replace_file(as_json, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
        replace_file(as_text, (text + "\n").encode())
    return [as_json, as_text]


def draw_targets(job: Job, recorded: Recorded, summary: Summary) -> list[Path]:
    """Draw the confusion matrices of each target, one for each strategy."""
    trials = "one trial" if len(summary["seeds"]) == 1 else f"{len(summary['seeds'])} trials together"
    files: list[Path] = []
    for number, (target, maps) in enumerate(target_confusions(job, recorded).items(), start=1):
        if maps:
            title = f"{summary['title']}: predictions on {drawable(target, f'target {number}')}"
            note = f"at the selected round, percent of the examples of each class, {trials}"
            file = job.path / "figures" / f"confusion_{slug(target)}.png"
            files += draw_confusions(file, title=title, note=note, classes=job.classes, panels=maps, endings=WITH_PDF)
    return files


def target_confusions(job: Job, recorded: Recorded) -> dict[str, dict[str, Confusion]]:
    """Add up confusion matrices over the trials, by column and strategy, if every trial has counts."""
    columns = name_columns(run.scenario for run in job.outer_runs)
    found = {name: confusions(recorded, name, columns, job.selection) for name in job.strategies}
    return {
        target: {name: counts for name, of in found.items() if (counts := of[target]) is not None}
        for target in columns.values()
    }


def rounds_note(job: Job, summary: Summary) -> str:
    """Describe the figure of the rounds: its seeds, its band and the selection."""
    seeds = ", ".join(map(str, summary["seeds"]))
    shown_as = "one trial" if len(summary["seeds"]) == 1 else "mean over trials, band: standard error of the mean"
    selected = (
        f"; of {job.settings_each} settings the one selected by {summary['selection'][0]}" if job.variants else ""
    )
    names = [*summary["strategies"], *([] if summary["averaged"] else summary["targets"])]
    unknown = any(drawable(name, "?") == "?" for name in names)
    numbered = "; a number stands for a name in the table that no installed font can draw" if unknown else ""
    lacking = f"; {len(summary['unfinished'])} of {summary['runs']} runs UNFINISHED" if summary["unfinished"] else ""
    return f"seeds {seeds}: {shown_as}{selected}; round 0, the untrained model, is left out{numbered}{lacking}"


def rounds_panels(job: Job, summary: Summary, recorded: Recorded) -> list[Panel]:
    """Make a panel of the accuracy on each target (or of their average if there is one) and of each distance."""
    columns = name_columns(run.scenario for run in job.outer_runs)
    if summary["averaged"]:
        labels = {"average": f"accuracy (%), mean over {len(columns)} targets"}
        columns = dict.fromkeys(columns, "average")
    else:
        numbered = enumerate(columns.values(), start=1)
        labels = {name: f"accuracy (%) on {drawable(name, f'target {number}')}" for number, name in numbered}
    curves = {
        name: trained_rounds(cells_of(recorded, name), job.selection, columns, DISTANCES) for name in job.strategies
    }
    labels |= {key: f"{label} of the sources" for key, label in DISTANCES.items()}
    return [
        Panel(label, {name: of[key] for name, of in curves.items()}, logarithmic=key in DISTANCES)
        for key, label in labels.items()
    ]


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
    return files + draw_targets(job, recorded, summary)


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
    """Add up the megabytes that source clients received and sent up to each evaluated round, as a mean over runs."""
    totals: dict[float, list[float]] = {}
    for run, rows in recorded:
        if run.strategy == strategy and not run.inner:
            moved = 0.0
            for number, group in sorted(rows_by_round(rows).items()):
                moved += sum(row["bytes_down"] + row["bytes_up"] for row in group if row["role"] == SOURCE)
                totals.setdefault(number, []).append(moved / MEGABYTE)
    return {number: sum(values) / len(values) for number, values in totals.items()}


def draw_domains(path: Path, summary: Summary, *, width: float = WIDTHS[""]) -> list[Path]:
    """Draw a group of bars for each target and for their average, one bar for each strategy, with standard errors."""
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
