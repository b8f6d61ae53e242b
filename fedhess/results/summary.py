"""The numbers of a job's table from its recorded rows: no data, no model, no checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedhess.base.errors import UsageError
from fedhess.base.tables import mean, mean_and_error
from fedhess.domains import Scenario
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.server.health import sickness
from fedhess.jobs.description import describe_arguments, describe_setting, protocol
from fedhess.jobs.job import Job
from fedhess.jobs.reopening import require_inner_runs
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.jobs.variants import describe
from fedhess.results.choices import choice_of, edge_warnings, incomplete
from fedhess.results.counts import selected_rows, summarise_counts
from fedhess.results.paired import compare_paired, paired_difference, shown_difference
from fedhess.results.selection import (
    Recorded,
    cells_of,
    mean_distance,
    read_rows,
    selection_rule,
    source_accuracy,
    target_accuracy,
)
from fedhess.results.sent import protected_targets, spent_privacy, summarise_sent

DISTANCES = {"gradient_distance": "gradient distance", "hgp_distance": "HGP distance"}


def summarise(job: Job, recorded: Recorded | None = None, *, selection: str | None = None) -> dict[str, Any]:
    """Compute the final table from the recorded rows.

    Args:
        job: The job.
        recorded: The job's rows, if they have been read already.
        selection: A key of `selectors.SELECTORS` in place of the job's own; only here can it be the oracle.

    Returns:
        JSON with title and protocol. Every strategy has its accuracy (percent, mean and standard error over trials) on
        each target, their average, the worst target of a trial and the sources, also by seed; the result of
        `counts.summarise_counts`; the alignment distances of the sources before and after training; the selected rounds
        (and settings, if there are several) by target; what is incomplete; the number of client failures; the gaps that
        they left in the evaluation; and with ``--average``, how many reported models are not averages.
        ``"comparison"`` is the result of :func:`fedhess.results.paired.compare_paired`. ``"unfinished"`` lists runs
        that lack rounds, with the reason for each failure. ``"sent"`` and ``"protected"`` are from
        :mod:`fedhess.results.sent`.
    """
    recorded = read_rows(job) if recorded is None else recorded
    selection = job.selection if selection is None else selection
    columns = name_columns(run.scenario for run in job.outer_runs)
    rules = [SELECTORS[selection]]
    if selection == DEFAULT:
        rules = sorted({selection_rule(rows) for run, rows in recorded if rows and not run.inner}) or rules
    strategies = {name: _summarise_strategy(job, recorded, name, columns, selection) for name in job.strategies}
    compared = ["average"] if _has_average(columns) else list(columns.values())
    comparison = compare_paired(
        {name: {column: of["by_seed"][column] for column in compared} for name, of in strategies.items()}
    )
    if comparison:
        for name in comparison["strategies"]:
            strategies[name]["unfit"] = _describe_unfit(strategies[name], strategies[comparison["baseline"]])
    return {
        "title": job.data["title"],
        "stand_in_for": job.data["stand_in_for"],
        "protocol": protocol(job, rules),
        "selection": rules,
        "seeds": job.seeds,
        "targets": list(columns.values()),
        "averaged": _has_average(columns),
        "classes": job.classes,
        "arguments": describe_arguments(job),
        "runs": len(recorded),
        "unfinished": [
            f"{name}, {run}: {how}" for name, of in strategies.items() for run, how in of["unfinished"].items()
        ],
        "comparison": comparison,
        "strategies": strategies,
        "sent": summarise_sent(recorded),
        "protected": protected_targets(recorded),
    }


def compare_selectors(job: Job, recorded: Recorded, selectors: Iterable[str], *, leave_out: bool) -> dict[str, Any]:
    """Summarise by each selector; one that lacks runs raises, or with ``leave_out`` is ``{"left_out": why}``."""
    compared: dict[str, Any] = {}
    for name in selectors:
        try:
            if name == "lodo":
                require_inner_runs(job)
            compared[name] = summarise(job, recorded, selection=name)
        except UsageError as error:
            if not leave_out:
                raise
            compared[name] = {"left_out": str(error).removeprefix(f"--selection {name}: ")}
    return compared


def _has_average(columns: Mapping[tuple[str, str], str]) -> bool:
    """Whether an average over the targets is meaningful, which it is not for several targets of a single scenario.

    These put different questions to the same model (ColoredMNIST's reversed colours and its grey images).
    """
    return len({scenario for scenario, _ in columns}) > 1


def _summarise_strategy(
    job: Job, recorded: Recorded, name: str, columns: Mapping[tuple[str, str], str], selection: str
) -> dict[str, Any]:
    accuracy: dict[str, dict[int, float | None]] = {column: {} for column in columns.values()}
    of_sources: dict[int, list[float | None]] = {}
    selected: dict[str, list[int | None]] = {}
    settings: dict[str, list[str | None]] = {}
    choices: list[dict[str, Any]] = []
    gaps: list[str] = []
    averaged: list[bool] = []
    before_after: dict[str, dict[str, list[float | None]]] = {key: {"before": [], "after": []} for key in DISTANCES}
    for cell in cells_of(recorded, name):
        choice, rows = cell.choose(selection)
        gaps += cell.gaps(job.variants)
        chosen, variant = None if choice is None else choice.server_round, cell.variant(choice)
        averaged += [row["averaged"] > 0 for row in rows if row["round"] == chosen and "averaged" in row][:1]
        selected.setdefault(cell.scenario.name, []).append(chosen)
        settings.setdefault(cell.scenario.name, []).append(
            describe(job.variants[variant]) if job.variants and variant is not None else None
        )
        choices += [choice_of(job, name, cell, variant)] if job.search else []
        of_sources.setdefault(cell.seed, []).append(source_accuracy(rows, chosen))
        for domain in cell.scenario.targets:
            accuracy[columns[cell.scenario.name, domain]][cell.seed] = target_accuracy(rows, chosen, domain)
        for key, found in before_after.items():
            found["before"].append(mean_distance(rows, 0, key))
            found["after"].append(mean_distance(rows, cell.candidates[0].last_round, key))
    seeds, scenarios = sorted(of_sources), len({scenario for scenario, _ in columns})
    whole = _has_average(columns)
    averages = [mean([by_seed.get(seed) for by_seed in accuracy.values()]) if whole else None for seed in seeds]
    by_seed = {column: {str(seed): _percent(value) for seed, value in of.items()} for column, of in accuracy.items()}
    sources = [_mean_of(scenarios, of_sources[seed]) for seed in seeds]
    for column, values in (("average", averages), ("sources", sources)):
        by_seed[column] = {str(seed): _percent(value) for seed, value in zip(seeds, values, strict=True)}
    counted = selected_rows(recorded, name, columns, selection)
    spent = spent_privacy([rows for run, rows in recorded if run.strategy == name])
    return {
        "accuracy": {column: mean_and_error(list(by_seed.values())) for column, by_seed in accuracy.items()},
        "average": mean_and_error(averages),
        "worst_domain": mean_and_error([_worst([of.get(seed) for of in accuracy.values()]) for seed in seeds]),
        **summarise_counts(counted, classes=len(job.classes), averaged=whole),
        "sources": mean_and_error(sources),
        "by_seed": by_seed,
        **{
            key: {when: _mean_of(scenarios * len(seeds), values) for when, values in found.items()}
            for key, found in before_after.items()
        },
        "selected_rounds": selected,
        **({"selected_settings": settings} if job.variants else {}),
        **({"choices": choices, "edges": edge_warnings(job, name, choices)} if job.search else {}),
        "incomplete": {
            column: text
            for scenario, text in incomplete(job, recorded, name, selection=selection).items()
            for (held_out, _), column in columns.items()
            if held_out == scenario
        },
        "failures": sum(len(row["failures"]) for run, rows in recorded if run.strategy == name for row in rows),
        "gaps": gaps,
        "not_averaged": f"{averaged.count(False)} of {len(averaged)}" if False in averaged else "",
        **({"privacy": spent} if spent else {}),
        **_troubles(job, recorded, name, selection),
    }


def _describe_unfit(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Describe by how much a strategy fits the sources worse than the baseline; empty if seeds alone may explain it."""
    cell = paired_difference(ours["by_seed"]["sources"], theirs["by_seed"]["sources"])
    return f"{shown_difference(cell | {'p': None})} points" if cell["high"] is not None and cell["high"] < 0 else ""


def _mean_of(count: int, values: Sequence[float | None]) -> float | None:
    """Average the values of all scenarios; None if a strategy of merged jobs has not run on some of them."""
    return mean(values) if len(values) == count else None


def _troubles(job: Job, recorded: Recorded, name: str, selection: str) -> dict[str, dict[str, str]]:
    """Name the runs of a strategy that show signs of trouble, and those that lack rounds, each with what is wrong."""
    sick, unfinished = dict[str, str](), dict[str, str]()
    for run, rows in recorded:
        if run.strategy != name or (run.inner and selection != "lodo"):
            continue
        kind = "cross-validation without" if run.inner else "target"
        where = f"{kind} {run.scenario.name}, seed {run.config.seed}{describe_setting(job, run)}"
        last = rows[-1]["round"] if rows else 0
        sources = [client for client in run.directory.clients().values() if client["role"] == SOURCE]
        fewest = min((client.get("train-examples", 0) for client in sources), default=0)
        sizes = {"classes": len(job.classes), "train_size": fewest}
        if sign := sickness(rows, run.config, args=run.config.strategy_args, **sizes):
            sick[where] = sign
        if last < run.config.rounds:
            why = " ".join((run.directory.failure() or "").split())
            unfinished[where] = f"round {last} of {run.config.rounds}" + (f": {why}" if why else "")
    return {"sick": sick, "unfinished": unfinished}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _worst(accuracies: Sequence[float | None]) -> float | None:
    """Return the lowest accuracy on a trial's targets; None if one is missing, or if there is only one target."""
    known = [value for value in accuracies if value is not None]
    return min(known) if 1 < len(known) == len(accuracies) else None


def name_columns(scenarios: Iterable[Scenario]) -> dict[tuple[str, str], str]:
    """Name the table's column of each (scenario, target): the domain, with the scenario if the domain is in several."""
    scenarios = list(dict.fromkeys(scenarios))
    held_out = [target for scenario in scenarios for target in scenario.targets]
    return {
        (scenario.name, target): target if held_out.count(target) == 1 else f"{target} (of {scenario.name})"
        for scenario in scenarios
        for target in scenario.targets
    }
