"""Make the final table from the rounds.jsonl files of a job; nothing here is needed while it runs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.domains import Scenario
from fedhess.figures import draw_rounds
from fedhess.job import Job, PlannedRun
from fedhess.runs import Row, writing
from fedhess.selection import mean_distance, select_round, selection_rule, source_accuracy, target_accuracy

DISTANCES = {"gradient_distance": "gradient distance", "hgp_distance": "HGP distance"}

UNNAMED_OPTIONS = ("data_dir", "seed", "stand_in_for")  # said elsewhere, or of one machine


def summarise(job: Job) -> dict[str, Any]:
    """Compute the final table from the recorded rows.

    Returns:
        JSON: title, protocol, and for every strategy the accuracy (percent, mean and standard error over trials) on
        each target, their average, and on the sources, the alignment distances of the sources before and after
        training, the selected rounds by target, and the number of clients' failures.
    """
    recorded = [(run, run.directory.rows()) for run in job.runs]
    columns = name_columns(list(dict.fromkeys(run.scenario for run in job.runs)))
    rules = sorted({selection_rule(rows) for _, rows in recorded})
    return {
        "title": job.benchmark.title,
        "stand_in_for": job.benchmark.stand_in_for,
        "protocol": protocol(job, rules),
        "selection": rules,
        "seeds": job.seeds,
        "targets": list(columns.values()),
        "averaged": _has_average(columns),
        "strategies": {
            name: _summarise_strategy([(run, rows) for run, rows in recorded if run.strategy == name], columns)
            for name in job.strategies
        },
    }


def protocol(job: Job, rules: Sequence[str]) -> str:
    """Say in one line how the numbers of a table came about."""
    config = job.runs[0].config
    sources = " or ".join(sorted({str(len(run.config.sources)) for run in job.runs}))
    server = f"{config.server_optimizer} lr {config.server_lr:.4g}"
    batch = "all" if config.batch_size == 0 else str(config.batch_size)
    options = {key: value for key, value in job.benchmark.options.items() if key not in UNNAMED_OPTIONS and value}
    data = f"data {', '.join(f'{key}={value}' for key, value in options.items())}; " if options else ""
    if job.differences:
        data = f"not the complete {job.benchmark.name}; {data}"
    args = {run.strategy: run.config.strategy_args for run in job.runs if run.config.strategy_args}
    given = "".join(f"; {name} {', '.join(f'{k}={v}' for k, v in of.items())}" for name, of in args.items())
    weights = "" if config.pretrained else " (not pretrained)"
    return (
        f"{data}{sources} source domains, {config.rounds} rounds x {config.local_steps} local steps, "
        f"model {config.model}{weights}, batch {batch}, client lr {config.lr:g}, server {server}, "
        f"seeds {', '.join(map(str, job.seeds))}, selection by {' and '.join(rules)}{given}"
    )


def table(summary: Mapping[str, Any]) -> str:
    """Render the summary as a Markdown table that also reads well on a terminal."""
    targets = list(summary["targets"])
    several = bool(summary["averaged"])
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
    trials = "one trial" if len(summary["seeds"]) == 1 else "mean +- standard error over trials"
    return "\n".join(
        [
            f"{summary['title']}: accuracy (%) on the target domain, {trials}",
            summary["protocol"],
            "distances: squared, of the source domains' head statistics to their mean, averaged over the domains, "
            "before -> after training",
            *([f"{failures} failure(s) of clients: see rounds.jsonl"] if failures else []),
            "",
            *rendered,
        ]
    )


def write_report(job: Job, summary: Mapping[str, Any]) -> list[Path]:
    """Write summary.json, summary.md and the figure; a stand-in's file names say that it is one.

    Returns:
        The files.

    Raises:
        StorageError: They cannot be written.
    """
    infix = f".{job.slug}" if job.benchmark.stand_in_for else ""
    as_json, as_text = job.path / f"summary{infix}.json", job.path / f"summary{infix}.md"
    figure = job.path / "figures" / f"{job.slug}-rounds.png"
    with writing(job.path):
        as_json.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        as_text.write_text(table(summary) + "\n", encoding="utf-8")
        figure.parent.mkdir(exist_ok=True)
        draw_rounds(
            figure,
            title=f"{job.benchmark.title}: mean over targets and trials",
            rows_by_strategy={
                name: [row for run in job.runs if run.strategy == name for row in run.directory.rows()]
                for name in job.strategies
            },
            panels={"accuracy": "target accuracy", **DISTANCES},
        )
    return [as_json, as_text, figure]


def _has_average(columns: Mapping[tuple[str, str], str]) -> bool:
    """Whether an average over the targets means something: not so for several targets of a single scenario.

    They are different questions to the same model (ColoredMNIST's turned colours and its grey images).
    """
    return len({scenario for scenario, _ in columns}) > 1


def _summarise_strategy(
    recorded: Sequence[tuple[PlannedRun, list[Row]]], columns: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    accuracy: dict[str, dict[int, float | None]] = {column: {} for column in columns.values()}
    of_sources: dict[int, list[float | None]] = {}
    selected: dict[str, list[int | None]] = {}
    for run, rows in recorded:
        chosen = select_round(rows)
        selected.setdefault(run.scenario.name, []).append(chosen)
        of_sources.setdefault(run.config.seed, []).append(source_accuracy(rows, chosen))
        for domain in run.scenario.targets:
            column = columns[run.scenario.name, domain]
            accuracy[column][run.config.seed] = target_accuracy(rows, chosen, domain)
    seeds = sorted({run.config.seed for run, _ in recorded})
    whole = _has_average(columns)
    averages = [_mean([by_seed[seed] for by_seed in accuracy.values()]) if whole else None for seed in seeds]
    before_after = {
        key: {
            "before": _mean([mean_distance(rows, 0, key) for _, rows in recorded]),
            "after": _mean([mean_distance(rows, run.config.rounds, key) for run, rows in recorded]),
        }
        for key in DISTANCES
    }
    return {
        "accuracy": {column: mean_and_error(list(by_seed.values())) for column, by_seed in accuracy.items()},
        "average": mean_and_error(averages),
        "sources": mean_and_error([_mean(of_sources[seed]) for seed in seeds]),
        **before_after,
        "selected_rounds": selected,
        "failures": sum(len(row["failures"]) for _, rows in recorded for row in rows),
    }


def name_columns(scenarios: Sequence[Scenario]) -> dict[tuple[str, str], str]:
    """Name the table's column of each (scenario, target): the domain, with the scenario where it is in several."""
    held_out = [target for scenario in scenarios for target in scenario.targets]
    return {
        (scenario.name, target): target if held_out.count(target) == 1 else f"{target} (of {scenario.name})"
        for scenario in scenarios
        for target in scenario.targets
    }


def mean_and_error(fractions: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard error of fractions, in percent.

    The standard error is that of the mean: sqrt(sum (x - mean)^2 / (n - 1) / n). None for a single trial, and both are
    None where a trial is.
    """
    mean = _mean(fractions)
    present = [value for value in fractions if value is not None]
    error = None
    if mean is not None and len(present) > 1:
        variance = sum((value - mean) ** 2 for value in present) / (len(present) - 1)
        error = 100 * math.sqrt(variance / len(present))
    return {"mean": None if mean is None else 100 * mean, "standard_error": error, "trials": len(present)}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


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
