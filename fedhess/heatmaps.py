"""Draw a diagnosis as heat maps; matplotlib is imported when something is drawn, since it takes a second."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedhess.diagnosis import BASELINE, MIXED_PAIR, SOURCE_PAIR

COLUMNS = 4


def draw_pairs(
    path: Path, *, title: str, domains: Sequence[str], panels: Mapping[str, Mapping[tuple[int, int], float | None]]
) -> None:
    """Draw one symmetric map of domains by domains for every attribute, each with a scale of its own.

    Args:
        path: The PNG file.
        title: Names the data set, and a stand-in as one.
        domains: Labels of rows and columns; a target's says that it is one.
        panels: By the attribute's label, the value of each pair of positions; None is left blank.
    """
    plt = _pyplot()
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.4 * COLUMNS, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for number, (axis, (label, values)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        grid = np.full((len(domains), len(domains)), np.nan)
        for (a, b), value in values.items():
            grid[a, b] = grid[b, a] = np.nan if value is None else value
        _draw_map(axis, grid, [f"{value:.3g}" for value in grid.flat], colours="viridis")
        axis.set_title(label, fontsize=10)
        first, last = number % COLUMNS == 0, number >= len(panels) - COLUMNS
        axis.set_xticks(range(len(domains)), domains if last else [], rotation=40, ha="right", fontsize=8)
        axis.set_yticks(range(len(domains)), domains if first else [], fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_strategies(path: Path, diagnosis: Mapping[str, Any], *, title: str) -> None:
    """Draw the distances of every strategy relative to those of erm, among sources and between sources and targets.

    Args:
        path: The PNG file.
        diagnosis: From :func:`fedhess.diagnosis.diagnose_job`, with erm in it.
        title: Names the data set, and a stand-in as one.
    """
    plt = _pyplot()
    names = [name for name, attribute in diagnosis["attributes"].items() if attribute["kind"] == "distance"]
    strategies = [strategy for strategy in diagnosis["strategies"] if strategy != BASELINE]
    kinds = {"source pairs": SOURCE_PAIR, "source-target pairs": MIXED_PAIR}
    size = (4 + 1.6 * len(strategies), 1.5 + 0.45 * len(names))
    figure, axes = plt.subplots(1, len(kinds), figsize=size, sharey=True)
    for axis, (label, kind) in zip(axes, kinds.items(), strict=True):
        ratios = np.array(
            [
                [
                    np.nan if (ratio := diagnosis["strategies"][s][name][kind]["relative_to_erm"]) is None else ratio
                    for s in strategies
                ]
                for name in names
            ]
        )
        _draw_map(axis, np.log2(ratios), [f"x{ratio:.2f}" for ratio in ratios.flat], colours="RdBu_r", symmetric=1.0)
        axis.set_title(label, fontsize=10)
        axis.set_xticks(range(len(strategies)), strategies, rotation=40, ha="right", fontsize=9)
    axes[0].set_yticks(range(len(names)), [diagnosis["attributes"][name]["label"] for name in names], fontsize=9)
    seeds = ", ".join(map(str, diagnosis["seeds"]))
    figure.suptitle(f"{title}\nblue: closer than under erm, red: farther; seeds {seeds}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


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


def _pyplot() -> Any:
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt
