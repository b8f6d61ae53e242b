"""Make tables and figures from the rounds.jsonl files of a job; nothing here is needed while it runs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.job import Job
from fedhess.runs import Row
from fedhess.selection import mean_distance, select_round, selection_rule, target_accuracy

DISTANCES = {"gradient_distance": "gradient distance", "hgp_distance": "HGP distance"}


def summarise(job: Job) -> dict[str, Any]:
    """Compute the final table from the recorded rows.

    Returns:
        JSON: title, protocol, and for every strategy the accuracy (percent, mean and standard error over trials) on
        each target and their average, and the alignment distances of the sources before and after training.
    """
    first = job.runs[0]
    rows_by_run = {id(run): run.directory.rows() for run in job.runs}
    targets = [domain for scenario in dict.fromkeys(run.scenario for run in job.runs) for domain in scenario.targets]
    strategies: dict[str, Any] = {}
    for name in dict.fromkeys(run.strategy for run in job.runs):
        mine = [run for run in job.runs if run.strategy == name]
        trials = [_trial(run.config.seed, run.config.rounds, rows_by_run[id(run)]) for run in mine]
        accuracy = {
            target: _mean_and_error([t["accuracy"][target] for t in trials if target in t["accuracy"]])
            for target in targets
        }
        by_seed: dict[int, list[float | None]] = {}
        for trial in trials:
            by_seed.setdefault(trial["seed"], []).extend(trial["accuracy"].values())
        averages = [None if None in values else sum(filter(None, values)) / len(values) for values in by_seed.values()]
        distances = {
            key: {when: _mean([trial[key][when] for trial in trials]) for when in ("before", "after")}
            for key in DISTANCES
        }
        strategies[name] = {
            "accuracy": accuracy,
            "average": _mean_and_error(averages),
            **distances,
            "selected_rounds": [trial["selected"] for trial in trials],
            "failures": sum(trial["failures"] for trial in trials),
        }
    rules = sorted({selection_rule(rows) for rows in rows_by_run.values()})
    return {
        "title": job.benchmark.title,
        "stand_in_for": job.benchmark.stand_in_for,
        "protocol": (
            f"{first.config.rounds} rounds x {first.config.local_steps} local steps, model {first.config.model}, "
            f"seeds {', '.join(map(str, sorted({run.config.seed for run in job.runs})))}, "
            f"selection by {' and '.join(rules)}"
        ),
        "targets": targets,
        "strategies": strategies,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Render the summary as a Markdown table that also reads well on a terminal."""
    targets = list(summary["targets"])
    several = len(targets) > 1
    heads = ["strategy", *targets, *(["average"] if several else []), *DISTANCES.values()]
    lines: list[list[str]] = []
    for name, result in summary["strategies"].items():
        cells = [name, *(_accuracy(result["accuracy"][target]) for target in targets)]
        cells += [_accuracy(result["average"])] if several else []
        cells += [f"{_short(result[key]['before'])} -> {_short(result[key]['after'])}" for key in DISTANCES]
        lines.append(cells)
    widths = [max(len(row[column]) for row in [heads, *lines]) for column in range(len(heads))]
    rendered = [_line(heads, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    rendered += [_line(line, widths) for line in lines]
    failures = sum(result["failures"] for result in summary["strategies"].values())
    return "\n".join(
        [
            f"{summary['title']}: accuracy (%) on the target domain, mean +- standard error over trials",
            f"{summary['protocol']}; distances of the source domains' heads to their mean, before -> after",
            *([f"{failures} failure(s) of clients: see rounds.jsonl"] if failures else []),
            "",
            *rendered,
        ]
    )


def write_report(job: Job, summary: Mapping[str, Any]) -> list[Path]:
    """Write summary.json, summary.md and the figures; a stand-in's file names say that it is one."""
    infix = f".{job.slug}" if job.benchmark.stand_in_for else ""
    paths = [job.path / f"summary{infix}.json", job.path / f"summary{infix}.md"]
    paths[0].write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(table(summary) + "\n", encoding="utf-8")
    figures = job.path / "figures"
    figures.mkdir(exist_ok=True)
    paths.append(figures / f"{job.slug}-rounds.png")
    _draw(job, paths[-1])
    return paths


def _trial(seed: int, rounds: int, rows: Sequence[Row]) -> dict[str, Any]:
    selected = select_round(rows)
    trial: dict[str, Any] = {"seed": seed, "selected": selected, "accuracy": target_accuracy(rows, selected)}
    for key in DISTANCES:
        trial[key] = {"before": mean_distance(rows, 0, key), "after": mean_distance(rows, rounds, key)}
    trial["failures"] = sum(len(row["failures"]) for row in rows)
    return trial


def _draw(job: Job, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - a second of import that only the figures need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    panels = {"accuracy": "target accuracy", **DISTANCES}
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), constrained_layout=True)
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        role = "target" if key == "accuracy" else "source"
        for name in dict.fromkeys(run.strategy for run in job.runs):
            points: dict[int, list[float]] = {}
            for run in job.runs:
                for row in run.directory.rows() if run.strategy == name else []:
                    if row["role"] == role and row[key] is not None:
                        points.setdefault(row["round"], []).append(row[key])
            axis.plot(list(points), [sum(values) / len(values) for values in points.values()], label=name)
        axis.set(xlabel="round", ylabel=label, yscale="linear" if key == "accuracy" else "log")
        axis.legend()
    figure.suptitle(f"{job.benchmark.title}: mean over targets and trials")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def _mean_and_error(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard error, in percent; without a standard error for a single trial."""
    mean = _mean(values)
    if mean is None:
        return {"mean": None, "standard_error": None, "trials": len(values)}
    present = [value for value in values if value is not None]
    error = None
    if len(present) > 1:
        variance = sum((value - mean) ** 2 for value in present) / (len(present) - 1)
        error = 100 * math.sqrt(variance / len(present))
    return {"mean": 100 * mean, "standard_error": error, "trials": len(present)}


def _accuracy(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "n/a"
    error = cell["standard_error"]
    return f"{cell['mean']:.1f}" + (f" +- {error:.1f}" if error is not None else "")


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"
