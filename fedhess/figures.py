"""Draw recorded rounds; matplotlib is imported when something is drawn, since it takes a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhess.protocol import SOURCE, TARGET
from fedhess.runs import Row


def draw_rounds(
    path: Path, *, title: str, rows_by_strategy: Mapping[str, Sequence[Row]], panels: Mapping[str, str]
) -> None:
    """Draw one panel a measure, one line a strategy, over the rounds.

    Args:
        path: The PNG file.
        title: Names the data set, and a stand-in as one.
        rows_by_strategy: The rows of all its runs.
        panels: Keys of rows and their labels; accuracy is drawn of the targets, a distance of the sources.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), constrained_layout=True)
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        role = TARGET if key == "accuracy" else SOURCE
        curves = {name: mean_by_round(rows, key, role=role) for name, rows in rows_by_strategy.items()}
        for name, curve in curves.items():
            axis.plot(list(curve), list(curve.values()), label=name, marker="o" if len(curve) == 1 else None)
        positive = any(value > 0 for curve in curves.values() for value in curve.values())
        axis.set(xlabel="round", ylabel=label, yscale="log" if key != "accuracy" and positive else "linear")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def mean_by_round(rows: Sequence[Row], key: str, *, role: str) -> dict[int, float]:
    """Average what the clients of a role measured, by round; a round at which none has is left out."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if row["role"] == role and row["split"] != "out" and row[key] is not None:
            values.setdefault(row["round"], []).append(row[key])
    return {number: sum(found) / len(found) for number, found in sorted(values.items())}
