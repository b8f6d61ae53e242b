"""Figures in one style, as PNG, SVG and PDF: lines distinct in greyscale, a legend outside the panels, fonts for names.

matplotlib is imported when something is drawn, since the import takes a second. The style lasts for one figure; nothing
is changed for the process.
"""

import io
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedhess.base.files import replace_file
from fedhess.base.tables import mean, mean_and_error
from fedhess.federation.server.round_selection import rows_by_round
from fedhess.jobs.metrics import Confusion
from fedhess.results.diagnosis import MIXED_PAIR, SOURCE_PAIR
from fedhess.results.paired import BASELINE
from fedhess.results.selection import Cell, mean_distance, target_accuracy

ENDINGS = (".png", ".svg")
WITH_PDF = (*ENDINGS, ".pdf")
WIDTHS = {"": 7.0, "-column": 3.4}  # inches of a figure over two columns of a paper, and over one
FONT = "DejaVu Sans"  # comes with matplotlib
BOXES = "Last Resort"  # also comes with matplotlib: a box with a number for every character
# Okabe and Ito's colours, safe for colour-blind readers; nine marks and four strokes make 36 pairs without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
STROKES = ("-", "--", "-.", ":")
MAPS = 4  # heat maps in a row
PANELS = 3  # panels of curves in a row over two columns
SMALL = 7.5  # points, in a figure drawn at its printed width
LABEL = 24  # characters in a line of an axis label
MARKS = 8  # about as many marks on a line, whatever the number of its points

Curve = Mapping[float, Mapping[str, Any]]  # by round, what `mean_and_error` returns


@dataclass(frozen=True)
class Panel:
    """One measure over the rounds, or over what they cost."""

    label: str  # axis label, with the unit
    curves: Mapping[str, Curve]  # by strategy
    logarithmic: bool = False
    across: str = "round"


def trained_rounds(
    cells: Sequence[Cell], selector: str, columns: Mapping[tuple[str, str], str], distances: Iterable[str]
) -> dict[str, Curve]:
    """Average the rows of one strategy's selected settings at every round, as the table does at the selected rounds.

    Args:
        cells: The strategy's cells for every target and seed.
        selector: A key of `selectors.SELECTORS`.
        columns: Name of each (scenario, target); targets with the same name are averaged within a trial.
        distances: Names of alignment distances.

    Returns:
        By column, in percent, and by distance: mean and standard error over trials at each round after training began.
        A round has no mean if a run lacks it, or if the strategy has not run on every scenario.
    """
    found: dict[str, dict[int, dict[int, list[float | None]]]] = {}
    seeds, scenarios = len({cell.seed for cell in cells}), len({scenario for scenario, _ in columns})
    expected = {name: seeds * count for name, count in Counter(columns.values()).items()}
    expected |= dict.fromkeys(distances, seeds * scenarios)
    for cell in cells:
        choice, rows = cell.choose(selector)
        names = [columns[cell.scenario.name, domain] for domain in cell.scenario.targets]
        for name in (*names, *distances):
            found.setdefault(name, {})
        trained = [row for row in rows if row["round"] > 0]  # the untrained model would set the scale
        for number, group in rows_by_round(trained if choice else []).items():
            values = [
                *(
                    (name, target_accuracy(group, number, d))
                    for name, d in zip(names, cell.scenario.targets, strict=True)
                ),
                *((name, mean_distance(group, number, name)) for name in distances),
            ]
            for name, value in values:
                found[name].setdefault(number, {}).setdefault(cell.seed, []).append(value)
    return {
        name: {
            number: mean_and_error(
                [mean(values) for values in by_seed.values()]
                if sum(map(len, by_seed.values())) == expected[name]
                else [None],
                unit=1.0 if name in distances else 100.0,
            )
            for number, by_seed in sorted(by_round.items())
        }
        for name, by_round in found.items()
    }


def draw_rounds(
    path: Path,
    *,
    title: str,
    note: str,
    panels: Sequence[Panel],
    endings: Sequence[str] = ENDINGS,
    width: float = WIDTHS[""],
) -> list[Path]:
    """Draw a panel for each measure, with a line for each strategy over the rounds and a band of the standard error."""
    strategies = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    names = (title, note, *strategies, *(panel.label for panel in panels))
    across = 1 if width < WIDTHS[""] else 2 if len(panels) == 4 else min(PANELS, len(panels))
    grid = math.ceil(len(panels) / across), across
    below = 0.13 * math.ceil(len(strategies) / _legend_columns(strategies, width, SMALL)) / grid[0]
    size = width / across, 2.1 + below
    shape: dict[str, Any] = {"size": size, "points": SMALL, "endings": endings}
    with drawing(path, grid, title=title, note=note, names=names, **shape) as axes:
        for axis, panel in zip(axes.flat, panels, strict=False):
            draw_panel(axis, panel, strategies)
    return written(path, endings)


def draw_panel(axis: Any, panel: Panel, strategies: Sequence[str]) -> None:
    """Draw one measure; the style of a strategy follows its index in ``strategies``."""
    values = [cell["mean"] for curve in panel.curves.values() for cell in curve.values()]
    present = [value for value in values if value is not None]
    for number, name in enumerate(strategies):
        _draw_curve(axis, panel.curves.get(name, {}), line_look(number), drawable(name, f"strategy {number + 1}"))
    if panel.logarithmic and present and min(present) > 0:
        axis.set(yscale="log", ylim=(min(present) / 1.5, None))
    if not present:
        axis.text(0.5, 0.5, "not recorded by every run", ha="center", va="center", transform=axis.transAxes)
        axis.set(xlim=(0, 1), yticks=[])
    axis.set(xlabel=panel.across, ylabel=textwrap.fill(panel.label, LABEL))
    axis.xaxis.get_major_locator().set_params(integer=panel.across == "round")
    axis.grid(alpha=0.3)


def _draw_curve(axis: Any, curve: Curve, look: Mapping[str, Any], label: str) -> None:
    points = {number: cell for number, cell in curve.items() if cell["mean"] is not None}
    axis.plot(list(points), [cell["mean"] for cell in points.values()], label=label, **look, **marked(len(points)))
    known = {number: cell for number, cell in points.items() if cell["standard_error"] is not None}
    low, high = ([cell["mean"] + sign * cell["standard_error"] for cell in known.values()] for sign in (-1, 1))
    axis.fill_between(list(known), low, high, color=look["color"], alpha=0.12, linewidth=0)


def line_look(number: int) -> dict[str, str]:
    """Return colour, mark and stroke of a line; the first 36 lines differ even without colour."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STROKES[number % len(STROKES)],
    }


def marked(points: int) -> dict[str, int]:
    """Mark evenly spaced points of a line, because marks on all points would hide it."""
    return {"markevery": max(1, points // MARKS)}


@contextmanager
def drawing(
    path: Path,
    grid: tuple[int, int],
    *,
    size: tuple[float, float],
    title: str,
    note: str = "",
    names: Iterable[str] = (),
    points: float = 10.0,
    endings: Sequence[str] = ENDINGS,
    **shared: Any,
) -> Iterator[Any]:
    """Open a figure; when the block ends, its legend is put below the panels and its files are written.

    Args:
        path: The PNG file; other files have its name with another ending.
        grid: Rows and columns of panels.
        size: Width and height of a panel, in inches.
        title: Names the data set.
        note: Second line of the title.
        names: Texts that users choose; fonts are selected that have their characters.
        points: Size of the text; a figure with small text is for print, and has more dots per inch.
        endings: Endings of the files.
        shared: For `matplotlib.figure.Figure.subplots`.

    Yields:
        The axes, an array of ``grid``'s shape.
    """
    with _figure(grid, size=size, names=(title, *names), points=points, **shared) as (figure, axes):
        yield axes
        for axis in axes.flat:
            if not axis.has_data():  # unused in the last row
                axis.axis("off")
        width = grid[1] * size[0]
        lines = [line for text in (title, note) for line in textwrap.wrap(drawable(text), int(130 / points * width))]
        figure.suptitle("\n".join(lines), fontsize=points)
        _put_legend(figure, axes, width, points)
        for ending in endings:
            # Without dates, the same figure has the same bytes.
            metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
            content = rendered(figure, ending[1:], dpi=120 if points > SMALL else 250, metadata=metadata)
            replace_file(path.with_suffix(ending), content)
            figure.set_layout_engine("none")  # it has its layout now


def panel_svg(panel: Panel, strategies: Sequence[str]) -> str:
    """Draw one measure as an ``svg`` element for a page, in the page's font."""
    wide, points = 4.0, 9.0
    size = wide, 2.6 + 0.15 * math.ceil(len(strategies) / _legend_columns(strategies, wide, points))
    names = (*strategies, panel.label)
    with _figure((1, 1), size=size, names=names, points=points) as (figure, axes):
        import matplotlib as mpl  # noqa: PLC0415

        draw_panel(axes[0, 0], panel, strategies)
        _put_legend(figure, axes, wide, points)
        with mpl.rc_context({"svg.fonttype": "none"}):
            text = rendered(figure, "svg", metadata={"Date": None}, transparent=True).decode()
    return text[text.index("<svg") :]


def rendered(figure: Any, form: str, **options: Any) -> bytes:
    """Render a figure to the bytes of a file; ``options`` are those of `matplotlib.figure.Figure.savefig`."""
    stream = io.BytesIO()
    figure.savefig(stream, format=form, **options)
    return stream.getvalue()


@contextmanager
def _figure(
    grid: tuple[int, int], *, size: tuple[float, float], names: Iterable[str], points: float, **shared: Any
) -> Iterator[tuple[Any, Any]]:
    """Set up a figure and its axes; the style lasts until the block ends, so the caller saves the figure inside it."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    families = dict.fromkeys([FONT, *(family for name in names for family in _fonts(name) or ())])
    style: Any = {"font.family": list(families), "font.size": points, "svg.hashsalt": "fedhess", "pdf.fonttype": 42}
    style |= {"lines.markersize": 0.45 * points, "lines.linewidth": 0.15 * points}
    with mpl.rc_context(style):
        figure = Figure(figsize=(grid[1] * size[0], grid[0] * size[1]), layout="constrained")
        yield figure, figure.subplots(*grid, squeeze=False, **shared)


def written(path: Path, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """Name the files of a figure."""
    return [path.with_suffix(ending) for ending in endings]


def _put_legend(figure: Any, axes: Any, width: float, points: float) -> None:
    """Put one legend below the panels, with each line named once."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = _legend_columns(handles, width, points)
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=0.8 * points,
            handlelength=3.5,
        )  # fmt: skip


def _legend_columns(names: Collection[str], width: float, points: float) -> int:
    """Count the names that stand side by side in a legend ``width`` inches wide."""
    return min(max(1, int(150 / points * width / (max(map(len, names)) + 10))), len(names))


def drawable(text: str, instead: str = "") -> str:
    """Return a text if the installed fonts have its characters, else ``instead`` or the text with escapes."""
    if _fonts(text) is None:
        text = instead or text.encode("ascii", "backslashreplace").decode()
    return text.replace("$", r"\$")  # otherwise it starts a formula


@lru_cache
def _fonts(text: str) -> tuple[str, ...] | None:
    """Name installed fonts that together have all characters of a text; None if a character is in no font."""
    from matplotlib import font_manager, ft2font  # noqa: PLC0415

    def having(file: str, wanted: set[str]) -> set[str]:
        font = ft2font.FT2Font(file)
        return {character for character in wanted if font.get_char_index(ord(character))}

    missing = {character for character in text if not character.isspace()}
    missing -= having(font_manager.findfont(FONT), missing)
    families: list[str] = []
    for entry in font_manager.fontManager.ttflist:
        regular = entry.style == "normal" and entry.weight == 400 and not entry.name.startswith(BOXES)
        if missing and regular and Path(entry.fname).exists():
            found = having(entry.fname, missing)
            families += [entry.name] if found else []
            missing -= found
    return None if missing else tuple(families)


def draw_pairs(
    path: Path,
    *,
    title: str,
    note: str,
    domains: Mapping[str, str],
    panels: Mapping[str, Mapping[tuple[int, int], float | None]],
) -> list[Path]:
    """Draw one symmetric map of domains by domains for every attribute, each with its own scale.

    ``domains`` labels rows and columns, by the short names of the table. ``panels`` has the value of each pair of
    positions, by the attribute's label; None is left blank.
    """
    columns = min(MAPS, len(panels))
    shape = (math.ceil(len(panels) / columns), columns)
    labels = [drawable(f"{short}: {name}", short) for short, name in domains.items()]
    with drawing(path, shape, size=(3.4, 3.2), title=title, note=note, names=domains.values()) as axes:
        for number, (axis, (label, values)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            grid = np.full((len(domains), len(domains)), np.nan)
            for (a, b), value in values.items():
                grid[a, b] = grid[b, a] = np.nan if value is None else value
            _draw_map(axis, grid, [f"{value:.3g}" for value in grid.flat], colours="viridis")
            axis.set_title(label, fontsize=10)
            first, last = number % columns == 0, number >= len(panels) - columns
            axis.set_xticks(range(len(domains)), labels if last else [], rotation=40, ha="right", fontsize=8)
            axis.set_yticks(range(len(domains)), labels if first else [], fontsize=8)
    return written(path)


def draw_strategies(path: Path, diagnosis: Mapping[str, Any], *, title: str) -> list[Path]:
    """Draw the distances of every strategy relative to those of erm, among sources and between sources and targets."""
    names = [name for name, attribute in diagnosis["attributes"].items() if attribute["kind"] == "distance"]
    strategies = [strategy for strategy in diagnosis["strategies"] if strategy != BASELINE]
    kinds = {"source pairs": SOURCE_PAIR, "source-target pairs": MIXED_PAIR}
    size = (2 + 0.8 * len(strategies), 1.5 + 0.45 * len(names))
    seeds = ", ".join(map(str, diagnosis["seeds"]))
    note = f"seeds {seeds}; ratio of the mean distances; dark: closer than under erm, bright: farther"
    labels = [drawable(strategy, f"strategy {n}") for n, strategy in enumerate(diagnosis["strategies"], start=1)]
    labels.pop(list(diagnosis["strategies"]).index(BASELINE))
    with drawing(path, (1, len(kinds)), size=size, title=title, note=note, names=strategies, sharey=True) as axes:
        for axis, (label, kind) in zip(axes[0], kinds.items(), strict=True):
            ratios = np.array(
                [
                    [
                        np.nan
                        if (ratio := diagnosis["strategies"][s][name][kind]["relative_to_erm"]) is None
                        else ratio
                        for s in strategies
                    ]
                    for name in names
                ]
            )
            texts = [f"x{ratio:.2f}" for ratio in ratios.flat]
            _draw_map(axis, np.log2(ratios), texts, colours="cividis", symmetric=1.0)
            axis.set_title(label, fontsize=10)
            axis.set_xticks(range(len(strategies)), labels, rotation=40, ha="right", fontsize=9)
        axes[0, 0].set_yticks(range(len(names)), [diagnosis["attributes"][name]["label"] for name in names], fontsize=9)
    return written(path)


def draw_confusions(
    path: Path,
    *,
    title: str,
    note: str,
    classes: Sequence[str],
    panels: Mapping[str, Confusion],
    endings: Sequence[str] = ENDINGS,
) -> list[Path]:
    """Draw one confusion matrix for each strategy: percent of the examples of a class (row) predicted as each class.

    Args:
        path: The PNG file.
        title: Names the data set and the target.
        note: Second line of the title.
        classes: Names of the classes; with more than 20 classes no names are written, with more than 12 no numbers.
        panels: The counts by strategy; the row of a class without examples stays empty.
        endings: Endings of the files.
    """
    columns = min(PANELS, len(panels))
    shape = (math.ceil(len(panels) / columns), columns)
    labels = [drawable(name, f"class {number}") for number, name in enumerate(classes, start=1)]
    ticks = labels if len(labels) <= 20 else []
    side = min(3.4, WIDTHS[""] / columns)
    look: dict[str, Any] = {"size": (side, side), "points": SMALL, "endings": endings}
    with drawing(path, shape, title=title, note=note, names=(title, *classes, *panels), **look) as axes:
        for number, (axis, (strategy, confusion)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            grid = np.zeros((len(classes), len(classes)))
            for label, guess, count in confusion:
                grid[label, guess] = count
            total = grid.sum(1, keepdims=True)
            shares = np.divide(100 * grid, total, out=np.full_like(grid, np.nan), where=total > 0)
            texts = [f"{share:.0f}" if share else "" for share in shares.flat] if len(classes) <= 12 else []
            _draw_map(axis, shares, texts, colours="cividis", limits=(0.0, 100.0), points=0.75 * SMALL)
            axis.set_title(drawable(strategy, f"strategy {number + 1}"), fontsize=SMALL)
            first, last = number % columns == 0, number >= len(panels) - columns
            axis.set_xticks(range(len(ticks)), ticks if last else [""] * len(ticks), rotation=90, fontsize=0.8 * SMALL)
            axis.set_yticks(range(len(ticks)), ticks if first else [""] * len(ticks), fontsize=0.8 * SMALL)
            axis.set(xlabel="prediction" if last else "", ylabel="class" if first else "")
    return written(path, endings)


def _draw_map(
    axis: Any,
    grid: Any,
    texts: Sequence[str],
    *,
    colours: str,
    symmetric: float | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    points: float = 8.0,
) -> None:
    """Fill an axis with a grid, and with one text for each cell if there are texts.

    ``symmetric`` centres the colour scale on 0 and gives its least extent; ``limits`` are the ends of the scale.
    """
    finite = grid[np.isfinite(grid)]
    if symmetric is not None:
        extent = max(symmetric, float(np.abs(finite).max(initial=0.0)))
        limits = (-extent, extent)
    image = axis.imshow(grid, cmap=colours, aspect="auto", vmin=limits[0], vmax=limits[1])
    if not texts:
        return
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = texts[row * grid.shape[1] + column]
            colour = "white" if dark else "black"
            written_in = axis.text(column, row, text, ha="center", va="center", fontsize=points, color=colour)
            written_in.set_in_layout(False)  # it lies inside; measuring hundreds takes seconds
