"""Metrics of the targets from their counts of predictions, at the rounds whose accuracies are reported."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedhess.base.tables import markdown_table, mean, mean_and_error, shown
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.metrics import (
    add_confusions,
    balanced_accuracy,
    calibration_error,
    class_accuracies,
    worst_class_accuracy,
)
from fedhess.results.selection import Recorded, cells_of, target_row

Columns = Mapping[tuple[str, str], str]  # names of the table's columns, by scenario and target
Counted = dict[str, dict[int, Row | None]]  # a target's row at the selected round, by column and seed

# Heads of the metrics that are averaged over the targets, in the order of the table.
HEADS = {"balanced_accuracy": "balanced accuracy", "worst_class_accuracy": "worst class", "calibration_error": "ECE"}


def selected_rows(recorded: Recorded, strategy: str, columns: Columns, selection: str) -> Counted:
    """Return a strategy's rows on the targets at the selected rounds; a row without counts is None.

    Returns:
        The row by column and seed, with ``confusion`` and ``calibration`` added up over the target's clients.
    """
    found: Counted = {column: {} for column in columns.values()}
    for cell in cells_of(recorded, strategy):
        choice, rows = cell.choose(selection)
        for domain in cell.scenario.targets:
            row = None if choice is None else target_row(rows, choice.server_round, domain)
            counted = row is not None and row.get("confusion") is not None
            found[columns[cell.scenario.name, domain]][cell.seed] = row if counted else None
    return found


def summarise_counts(counted: Counted, *, classes: int, averaged: bool) -> dict[str, Any]:
    """Compute the metrics of one strategy from its counts, in percent.

    Returns:
        JSON: ``balanced_accuracy``, ``worst_class_accuracy`` and ``calibration_error``, each with mean and standard
        error over trials by target; ``averages``, the same for their average over the targets; and ``class_accuracy``,
        by target a list of the mean accuracy on each class, None for a class without examples.
    """
    measures: dict[str, Callable[[Row], float | None]] = {
        "balanced_accuracy": lambda row: balanced_accuracy(row["confusion"], classes=classes),
        "worst_class_accuracy": lambda row: worst_class_accuracy(row["confusion"], classes=classes),
        "calibration_error": lambda row: calibration_error(row["calibration"] or ()),
    }
    seeds = sorted({seed for by_seed in counted.values() for seed in by_seed})
    summary: dict[str, Any] = {"averages": {}}
    for name, measure in measures.items():
        values = {
            column: {seed: None if row is None else measure(row) for seed, row in by_seed.items()}
            for column, by_seed in counted.items()
        }
        summary[name] = {column: mean_and_error(list(by_seed.values())) for column, by_seed in values.items()}
        averages = [mean([by_seed.get(seed) for by_seed in values.values()]) if averaged else None for seed in seeds]
        summary["averages"][name] = mean_and_error(averages)
    summary["class_accuracy"] = {
        column: _class_means(list(by_seed.values()), classes) for column, by_seed in counted.items()
    }
    return summary


def confusions(
    recorded: Recorded, strategy: str, columns: Columns, selection: str
) -> dict[str, list[list[int]] | None]:
    """Add up a strategy's confusion matrices over the trials, by column; None where a trial has no counts."""
    counted = selected_rows(recorded, strategy, columns, selection)
    found: dict[str, list[list[int]] | None] = {}
    for column, by_seed in counted.items():
        rows = [row["confusion"] for row in by_seed.values() if row is not None]
        found[column] = add_confusions(rows) if rows and len(rows) == len(by_seed) else None
    return found


def counts_section(summary: Mapping[str, Any]) -> list[str]:
    """Render the metrics below the accuracies, one row for each strategy; empty if no run recorded counts."""
    found = counts_lines(summary)
    if found is None:
        return []
    note, heads, lines = found
    texts = [[cell if isinstance(cell, str) else shown(cell) for cell in line] for line in lines]
    left = sum(isinstance(cell, str) for cell in lines[0])
    return ["", f"the same models on the target domain (%): {note}", "", markdown_table(heads, texts, left=left)]


def counts_lines(summary: Mapping[str, Any]) -> tuple[str, list[str], list[list[Any]]] | None:
    """List the metrics of counts: a note, heads, and one line for each strategy, with names and then means with errors.

    If targets are not averaged, each has its own line. None if no run recorded counts.
    """
    targets = list(summary["targets"])
    several = len(targets) > 1
    by_target = several and not summary["averaged"]
    lines: list[list[Any]] = []
    for name, result in summary["strategies"].items():
        for target in targets if by_target else [targets[0]]:
            of = result["averages"] if summary["averaged"] else {key: result[key][target] for key in HEADS}
            lines.append([name, *([target] if by_target else []), *(of[key] for key in HEADS)])
            lines[-1] += [result["worst_domain"]] if several else []
    left = 1 + by_target
    if all(cell["mean"] is None for line in lines for cell in line[left : left + len(HEADS)]):
        return None
    heads = ["strategy", *(["target"] if by_target else []), *HEADS.values(), *(["worst target"] if several else [])]
    mean_of = "mean over the targets; " if summary["averaged"] else ""
    worst = "; worst target: the lowest accuracy of a trial's targets" if several else ""
    return f"{mean_of}ECE: calibration error, 15 bins{worst}", heads, lines


def _class_means(rows: Sequence[Row | None], classes: int) -> list[float | None]:
    if None in rows or not rows:
        return [None] * classes
    by_trial = [class_accuracies(row["confusion"], classes=classes) for row in rows if row is not None]
    means = [mean(values) for values in zip(*by_trial, strict=True)]
    return [None if value is None else 100 * value for value in means]
