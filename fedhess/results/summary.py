"""The table of a job from its recorded rows: no data, no model, no checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.base.files import replace_file, writing
from fedhess.base.tables import markdown_table, mean, mean_and_error, notes, short, shown
from fedhess.domains import Scenario
from fedhess.federation.server.health import sickness
from fedhess.jobs.description import describe_arguments, describe_setting, protocol
from fedhess.jobs.job import Job, slug
from fedhess.jobs.metrics import Confusion
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.jobs.variants import describe
from fedhess.results.choices import choice_lines, choice_of, edge_warnings, incomplete
from fedhess.results.columns import (
    MARKS,
    accuracy_columns,
    cell_of,
    comparison_columns,
    differences_of,
    heading,
    mark_best,
    marked_text,
    warnings,
)
from fedhess.results.counts import confusions, counts_section, selected_rows, summarise_counts
from fedhess.results.figures import ENDINGS, Panel, draw_confusions, draw_rounds, drawable, trained_rounds
from fedhess.results.paired import compare_paired, explain, shown_difference
from fedhess.results.privacy import spent_privacy
from fedhess.results.selection import (
    Recorded,
    cells_of,
    mean_distance,
    read_rows,
    selection_rule,
    source_accuracy,
    target_accuracy,
)
from fedhess.results.sent import protected_targets, sent_section, summarise_sent

DISTANCES = {"gradient_distance": "gradient distance", "hgp_distance": "HGP distance"}


def summarise(job: Job, recorded: Recorded | None = None, *, selection: str | None = None) -> dict[str, Any]:
    """Compute the final table from the recorded rows.

    Args:
        job: The job.
        recorded: Its rows where they have been read already.
        selection: A key of `selection.SELECTORS` in place of the job's own; only here can it be the oracle.

    Returns:
        JSON: title, protocol, and for every strategy the accuracy (percent, mean and standard error over trials) on
        each target, their average, on the worst target of a trial, and on the sources, seed by seed too, what
        `counts.summarise_counts` returns, the alignment distances of the sources before and after training, the
        selected rounds (and settings, where there are several) by target, what is incomplete, the number of clients'
        failures, and the gaps that they left in the evaluation. ``"comparison"`` is what
        :func:`fedhess.results.paired.compare_paired` returns, ``"unfinished"`` lists runs that lack rounds, with the
        reason of those that failed, ``"sent"`` and ``"protected"`` are what :mod:`fedhess.results.sent` makes of rows.
    """
    recorded = read_rows(job) if recorded is None else recorded
    selection = job.selection if selection is None else selection
    columns = name_columns(list(dict.fromkeys(run.scenario for run in job.outer_runs)))
    rules = [SELECTORS[selection]]
    if selection == DEFAULT:
        rules = sorted({selection_rule(rows) for run, rows in recorded if rows and not run.inner}) or rules
    strategies = {name: _summarise_strategy(job, recorded, name, columns, selection) for name in job.strategies}
    compared = ["average"] if _has_average(columns) else list(columns.values())
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
        "comparison": compare_paired(
            {name: {column: of["by_seed"][column] for column in compared} for name, of in strategies.items()}
        ),
        "strategies": strategies,
        "sent": summarise_sent(recorded),
        "protected": protected_targets(recorded),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Render the summary as a Markdown table that also reads well on a terminal."""
    columns = accuracy_columns(summary)
    marks = mark_best(summary)
    compared = summary["comparison"]
    heads = ["strategy", *columns, *comparison_columns(summary), *DISTANCES.values()]
    lines: list[list[str]] = []
    for name, result in summary["strategies"].items():
        cells = [name, *(marked_text(shown(cell_of(result, column)), marks[name, column]) for column in columns)]
        cells += [shown_difference(cell) if cell else "" for cell in differences_of(summary, name)]
        cells += [f"{short(result[key]['before'])} -> {short(result[key]['after'])}" for key in DISTANCES]
        lines.append(cells)
    return "\n".join(
        [
            heading(summary),
            summary["protocol"],
            *warnings(summary),
            "distances: squared, of the source domains' head statistics to their mean, averaged over the domains, "
            "before -> after training",
            *([f"in each column {MARKS}"] if any(marks.values()) else []),
            *([explain(compared)] if compared else []),
            "",
            markdown_table(heads, lines),
            *choice_lines(summary["strategies"]),
            *counts_section(summary),
            *notes(summary),
        ]
    )


def write_report(job: Job, summary: Mapping[str, Any]) -> list[Path]:
    """Write summary.json, summary.md and, as PNG and SVG, figures/rounds; titles name a stand-in."""
    files = write_summary(job, summary)
    figure = job.path / "figures" / "rounds.png"
    with writing(job.path):
        figure.parent.mkdir(exist_ok=True)
        title = f"{summary['title']}: accuracy on the target and alignment distances, round by round"
        panels = rounds_panels(job, summary, read_rows(job))
        return files + draw_rounds(figure, title=title, note=rounds_note(job, summary), panels=panels)


def write_summary(job: Job, summary: Mapping[str, Any]) -> list[Path]:
    """Write summary.json, and summary.md with the table and what was sent."""
    return _write_both(job, "summary", summary, "\n".join([table(summary), *sent_section(summary)]))


def _write_both(job: Job, name: str, content: Mapping[str, Any], text: str) -> list[Path]:
    as_json, as_text = job.path / f"{name}.json", job.path / f"{name}.md"
    with writing(job.path):
        job.path.mkdir(parents=True, exist_ok=True)  # that of jobs put together
        replace_file(as_json, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
        replace_file(as_text, (text + "\n").encode())
    return [as_json, as_text]


def draw_targets(
    job: Job, recorded: Recorded, summary: Mapping[str, Any], *, endings: Sequence[str] = ENDINGS
) -> list[Path]:
    """Draw the confusion matrices of each target, one a strategy."""
    trials = "one trial" if len(summary["seeds"]) == 1 else f"{len(summary['seeds'])} trials together"
    files: list[Path] = []
    for number, (target, maps) in enumerate(target_confusions(job, recorded).items(), start=1):
        if maps:
            title = f"{summary['title']}: predictions on {drawable(target, f'target {number}')}"
            note = f"at the selected round, percent of the examples of each class, {trials}"
            file = job.path / "figures" / f"confusion_{slug(target)}.png"
            files += draw_confusions(file, title=title, note=note, classes=job.classes, panels=maps, endings=endings)
    return files


def target_confusions(job: Job, recorded: Recorded) -> dict[str, dict[str, Confusion]]:
    """Add up confusion matrices over the trials: by column and strategy, those of which every trial has counts."""
    columns = name_columns(list(dict.fromkeys(run.scenario for run in job.outer_runs)))
    found = {name: confusions(recorded, name, columns, job.selection) for name in job.strategies}
    return {
        target: {name: counts for name, of in found.items() if (counts := of[target]) is not None}
        for target in columns.values()
    }


def rounds_note(job: Job, summary: Mapping[str, Any]) -> str:
    """Describe the figure of the rounds: seeds, what the band is, what was selected."""
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


def rounds_panels(job: Job, summary: Mapping[str, Any], recorded: Recorded) -> list[Panel]:
    """Make a panel of the accuracy on each target, or of their average where there is one, and of each distance."""
    columns = name_columns(list(dict.fromkeys(run.scenario for run in job.outer_runs)))
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


def _has_average(columns: Mapping[tuple[str, str], str]) -> bool:
    """Whether an average over the targets means something: not so for several targets of a single scenario.

    They are different questions to the same model (ColoredMNIST's turned colours and its grey images).
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
    before_after: dict[str, dict[str, list[float | None]]] = {key: {"before": [], "after": []} for key in DISTANCES}
    for cell in cells_of(recorded, name):
        choice, rows = cell.choose(selection)
        gaps += cell.gaps(job.variants)
        chosen, variant = None if choice is None else choice.server_round, cell.variant(choice)
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
    seeds = sorted(of_sources)
    whole = _has_average(columns)
    averages = [mean([by_seed.get(seed) for by_seed in accuracy.values()]) if whole else None for seed in seeds]
    by_seed = {column: {str(seed): _percent(value) for seed, value in of.items()} for column, of in accuracy.items()}
    by_seed |= {"average": {str(seed): _percent(value) for seed, value in zip(seeds, averages, strict=True)}}
    counted = selected_rows(recorded, name, columns, selection)
    spent = spent_privacy([rows for run, rows in recorded if run.strategy == name])
    return {
        "accuracy": {column: mean_and_error(list(by_seed.values())) for column, by_seed in accuracy.items()},
        "average": mean_and_error(averages),
        "worst_domain": mean_and_error([_worst([of.get(seed) for of in accuracy.values()]) for seed in seeds]),
        **summarise_counts(counted, classes=len(job.classes), averaged=whole),
        "sources": mean_and_error([mean(of_sources[seed]) for seed in seeds]),
        "by_seed": by_seed,
        **{key: {when: mean(values) for when, values in found.items()} for key, found in before_after.items()},
        "selected_rounds": selected,
        **({"selected_settings": settings} if job.variants else {}),
        **({"choices": choices, "edges": edge_warnings(job, name, choices)} if job.search else {}),
        "incomplete": {
            column: text
            for scenario, text in incomplete(job, recorded, name).items()
            for (held_out, _), column in columns.items()
            if held_out == scenario
        },
        "failures": sum(len(row["failures"]) for run, rows in recorded if run.strategy == name for row in rows),
        "gaps": gaps,
        **({"privacy": spent} if spent else {}),
        **_troubles(job, recorded, name),
    }


def _troubles(job: Job, recorded: Recorded, name: str) -> dict[str, dict[str, str]]:
    """Name the runs of a strategy that are sick, and those that lack rounds, each with what is wrong."""
    sick, unfinished = dict[str, str](), dict[str, str]()
    for run, rows in ((run, rows) for run, rows in recorded if run.strategy == name and not run.inner):
        where = f"target {run.scenario.name}, seed {run.config.seed}{describe_setting(job, run)}"
        last = rows[-1]["round"] if rows else 0
        if sign := sickness(rows, run.config, args=run.config.strategy_args, classes=len(job.classes)):
            sick[where] = sign
        if last < run.config.rounds:
            why = " ".join((run.directory.failure() or "").split())
            unfinished[where] = f"round {last} of {run.config.rounds}" + (f": {why}" if why else "")
    return {"sick": sick, "unfinished": unfinished}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _worst(accuracies: Sequence[float | None]) -> float | None:
    """Return the lowest accuracy on a trial's targets; None where one is missing, or there is only one target."""
    known = [value for value in accuracies if value is not None]
    return min(known) if 1 < len(known) == len(accuracies) else None


def name_columns(scenarios: Sequence[Scenario]) -> dict[tuple[str, str], str]:
    """Name the table's column of each (scenario, target): the domain, with the scenario where it is in several."""
    held_out = [target for scenario in scenarios for target in scenario.targets]
    return {
        (scenario.name, target): target if held_out.count(target) == 1 else f"{target} (of {scenario.name})"
        for scenario in scenarios
        for target in scenario.targets
    }


def selector_table(compared: Mapping[str, Any]) -> str:
    """Render a column for each selector, a row for each strategy and target, and what was selected.

    Args:
        compared: By selector, what `report.summarise` returns for it, or ``{"left_out": why}``; one is not left out.
    """
    left_out = {name: found["left_out"] for name, found in compared.items() if "left_out" in found}
    compared = {name: found for name, found in compared.items() if name not in left_out}
    first = next(iter(compared.values()))
    columns = {name: SELECTORS[name] if name != "source" else found["selection"][0] for name, found in compared.items()}
    heads = ["strategy", "target", *columns.values()]
    lines: list[list[str]] = []
    for strategy in first["strategies"]:
        results = [found["strategies"][strategy] for found in compared.values()]
        lines += [
            [strategy, target, *(shown(result["accuracy"][target]) for result in results)]
            for target in first["targets"]
        ]
        if first["averaged"]:
            lines.append([strategy, "average", *(shown(result["average"]) for result in results)])
    trials = "one trial" if len(first["seeds"]) == 1 else "mean +- standard error over trials"
    protocol = first["protocol"].partition(", selection")
    rest = protocol[2].partition(";")[2]
    lines_above = [f"{first['title']}: accuracy (%) on the target domain by what it was selected by, {trials}"]
    lines_above.append(protocol[0] + (f";{rest}" if rest else ""))
    if "oracle" in compared:
        lines_above.append(
            "the oracle takes the last round, and the setting that is best on the target: a bound, no result"
        )
    lines_above += [f"left out: {SELECTORS[name]}: {why}" for name, why in left_out.items()]
    tables = [markdown_table(heads, lines, left=2), markdown_table(heads, _selected(compared), left=len(heads))]
    return "\n".join([*lines_above, "", tables[0], "", "selected, seed by seed:", "", tables[1], *notes(first)])


def write_selection(job: Job, compared: Mapping[str, Any]) -> list[Path]:
    """Write selection.json and selection.md; the title in them names a stand-in."""
    return _write_both(job, "selection", compared, selector_table(compared))


def _selected(compared: Mapping[str, Any]) -> list[list[str]]:
    """List the rounds (and settings) that each selector chose, seed by seed."""
    first = next(iter(compared.values()))
    lines: list[list[str]] = []
    for strategy, result in first["strategies"].items():
        for scenario in result["selected_rounds"]:
            cells = []
            for found in compared.values():
                own = found["strategies"][strategy]
                rounds = own["selected_rounds"][scenario]
                settings = own.get("selected_settings", {}).get(scenario, [None] * len(rounds))
                cells.append(
                    "; ".join(_named(number, setting) for number, setting in zip(rounds, settings, strict=True))
                )
            lines.append([strategy, scenario, *cells])
    return lines


def _named(server_round: int | None, setting: str | None) -> str:
    if server_round is None:
        return "none"
    return f"round {server_round}" + (f" ({setting})" if setting else "")
