"""Draw a diagnosis as heat maps, whose colours are ordered in greyscale too; every field has its number."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedhess.results.diagnosis import BASELINE, MIXED_PAIR, SOURCE_PAIR
from fedhess.results.figures import drawable, drawing, written

COLUMNS = 4


def draw_pairs(
    path: Path,
    *,
    title: str,
    note: str,
    domains: Mapping[str, str],
    panels: Mapping[str, Mapping[tuple[int, int], float | None]],
) -> list[Path]:
    """Draw one symmetric map of domains by domains for every attribute, each with a scale of its own.

    Args:
        path: The PNG file.
        title: Names the data set, and a stand-in as one.
        note: What a reader must know: seeds, what is averaged.
        domains: Labels of rows and columns; a target's says that it is one. By the short name that the table has.
        panels: By the attribute's label, the value of each pair of positions; None is left blank.

    Returns:
        The files.
    """
    columns = min(COLUMNS, len(panels))
    shape = (math.ceil(len(panels) / columns), columns)
    labels = [drawable(f"{short}: {name}", short) for short, name in domains.items()]
    with drawing(path, shape, size=(3.4, 3.2), title=title, note=note, names=domains.values()) as axes:
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
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
    """Draw the distances of every strategy relative to those of erm, among sources and between sources and targets.

    Args:
        path: The PNG file.
        diagnosis: From :func:`fedhess.results.diagnosis.diagnose_job`, with erm in it.
        title: Names the data set, and a stand-in as one.

    Returns:
        The files.
    """
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


def _draw_map(axis: Any, grid: Any, texts: Sequence[str], *, colours: str, symmetric: float | None = None) -> None:
    """Fill an axis with a grid; ``symmetric`` centres the colours on 0 and gives their least extent."""
    finite = grid[np.isfinite(grid)]
    extent = None if symmetric is None else max(symmetric, float(np.abs(finite).max(initial=0.0)))
    image = axis.imshow(grid, cmap=colours, aspect="auto", vmin=None if extent is None else -extent, vmax=extent)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = texts[row * grid.shape[1] + column]
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
