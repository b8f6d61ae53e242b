"""Distances between the domains' head Hessians while ERM, HGP and Hutchinson train, beside accuracy on the targets.

    python -m fedhess.simulations.hessian_distances                         # ColoredMNIST, 5 seeds: an hour
    python -m fedhess.simulations.hessian_distances --strategy hgp --seeds 0   # a part; results merge
    python -m fedhess.simulations.hessian_distances --quick

ColoredMNIST, form "irm", with the settings of ``correlation_shift``. The model of every 25th round is kept.
After training, gradient and Hessian of each domain's loss with respect to the head are computed exactly, in float64, on
all its examples. They are compared between the two sources, and between a target and the mean of the sources. Targets,
labels included, are read for this alone, and only after training has ended.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from safetensors.torch import load_file, save
from torch import Tensor

from fedhess.base.environment import torch_threads
from fedhess.base.errors import FederationError, UsageError
from fedhess.base.files import replace_file, writing
from fedhess.base.tables import markdown_table, mean_and_error, short, shown
from fedhess.cli.command import Command, run_command
from fedhess.curvature import HeadBatch, head_gradient
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.description import name_run, whole_protocol
from fedhess.jobs.directory import job_directory
from fedhess.jobs.growing import record_growth
from fedhess.jobs.job import PlannedRun
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import require_finished
from fedhess.jobs.running import prepare_domains
from fedhess.jobs.workers.worker import run_to_end
from fedhess.models.building import build_model
from fedhess.results.domain_views import view_under
from fedhess.results.figures import Curve, Panel, draw_panel, drawing, written
from fedhess.results.paired import BASELINE, paired_difference
from fedhess.results.summary import summarise
from fedhess.simulations import correlation_shift
from fedhess.simulations.correlation_shift import LABELS, QUICK_EXAMPLES, quickened
from fedhess.simulations.scenarios.comparison import (
    Comparison,
    describe_machine,
    heading,
    own_particulars,
    shared_protocol,
    tables,
    troubles,
)
from fedhess.simulations.scenarios.measurement import Configuration, describe, plan, seconds_of_rounds, warnings_of
from fedhess.simulations.scenarios.records import Line, Record, lines_of
from fedhess.simulations.scenarios.running import Options, SeedsOption, read_seeds, run_scenario, with_options
from fedhess.strategies.cma import full

STRATEGIES = ("erm", "hgp", "hutchinson")
SOURCES = "sources"  # the column of their mean
EVERY, QUICK_EVERY = 25, 10  # rounds
SHOWN = 5  # measured rounds in the table, besides the last
DRAWN = {"frobenius": "Frobenius", "spectral": "spectral", "hgp": "HGP", "diagonal": "diagonal"}
MEASURES = {"gradient": "gradient", **DRAWN}

COMPARISON = Comparison(
    name="hessian_distances",
    title="Distances of the domains' head Hessians as methods train",
    published={},
    labels=LABELS,
    average=False,
)
Pick = Callable[[Mapping[str, Any]], float]  # a number of a measured round

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def configurations(
    *, strategies: Sequence[str] = STRATEGIES, seeds: Sequence[int] = (0,), per_domain: int = 0, every: int = EVERY
) -> list[Configuration]:
    """List the jobs: those of ``correlation_shift``, evaluated and kept every few rounds."""
    jobs = correlation_shift.configurations(strategies=strategies, seeds=seeds, per_domain=per_domain)
    kept = {"evaluate_every": every, "checkpoint_every": every}
    return [replace(job, overrides={**job.overrides, **kept}) for job in jobs]


# -- Measuring ---------------------------------------------------------------------------------------------------------


def measure(configuration: Configuration, *, folder: Path, device: str = "auto") -> Row:
    """Run one job, or continue it; when it has ended, compare the domains under the models that were kept.

    Returns:
        A row as ``scenarios.measurement.measure`` makes it, with ``course``: what `measure_round` returns, by round.
    """
    progress = Progress(silent=not sys.stdout.isatty())
    job = plan(configuration, folder=folder, device=device, notify=progress.note)
    (run,) = job.runs
    models = run.directory.path / "models"

    def on_round(server_round: int, rows: list[Row]) -> None:
        progress.update(0, server_round, rows)
        keep_model(run, models)

    with job_directory(job.path, job.record, resume=True) as changes:
        record_growth(job, changed=bool(changes))
        keep_model(run, models)  # of the last round, in case a kill came between it and its model
        prepare_domains(job, run.config, progress)
        progress.start([run.config.rounds])
        progress.add_run(0, name_run(job, run), run.directory.completed_round() or 0)
        try:
            with torch_threads(run.config.threads):
                run_to_end(run.directory, run.config, classes=job.classes, on_round=on_round)
        except FederationError as error:
            return describe(job, configuration) | {"accuracy": {}, "stopped": str(error).splitlines()[0]}
        finally:
            progress.stop()
    started = time.monotonic()
    course = [measure_round(run, number, weights) for number, weights in kept_models(run, models)]
    return describe(job, configuration) | {
        "accuracy": course[-1]["accuracy"],
        "average": None,
        "protocol": whole_protocol(job, ["last round"]),
        "course": course,
        **warnings_of(summarise(job)),
        "seconds": round(seconds_of_rounds(job) + time.monotonic() - started, 1),
    }


def keep_model(run: PlannedRun, models: Path) -> None:
    """Write the model of a run's last checkpoint into a folder; every evaluated round has a checkpoint."""
    checkpoint = run.directory.load_checkpoint()
    if checkpoint is not None:
        with writing(models):
            models.mkdir(exist_ok=True)
            tensors = {name: value.contiguous() for name, value in checkpoint.evaluated().items()}
            replace_file(models / f"{checkpoint.server_round}.safetensors", save(tensors))


def kept_models(run: PlannedRun, models: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Read the model of each evaluated round, in order."""
    for number in sorted({row["round"] for row in run.directory.rows()}):
        file = models / f"{number}.safetensors"
        if not file.exists():
            raise UsageError(
                f"there is no {file}, the model of an evaluated round; delete {run.directory.path} to begin anew"
            )
        yield number, load_file(file)


@torch.no_grad()
def measure_round(run: PlannedRun, server_round: int, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare the domains of a finished run under one model.

    Returns:
        JSON: the round; ``accuracy`` in percent, mean over sources and that of each target; ``distances`` by measure,
        mean over pairs of sources and from each target to the mean of the sources; ``norms`` by measure, mean over
        sources.
    """
    require_finished(run)
    model = build_model(run.config, initial=False)
    model.load_state_dict(dict(weights))
    views = view_under(model.eval(), run, most_examples=sys.maxsize)
    found = {view.domain: curvature(view.batch) for view in views}
    sources, targets = ([view for view in views if view.role == role] for role in (SOURCE, TARGET))
    parts = [found[view.domain] for view in sources]
    centre = Curvature(*(torch.stack(values).mean(0) for values in zip(*parts, strict=True)))
    nothing = Curvature(*map(torch.zeros_like, centre))
    apart = {view.domain: distances(found[view.domain], centre) for view in targets}
    return {
        "round": server_round,
        "accuracy": {
            SOURCES: 100 * sum(view.accuracy for view in sources) / len(sources),
            **{view.domain: 100 * view.accuracy for view in targets},
        },
        "distances": {SOURCES: _mean([distances(one, other) for one, other in combinations(parts, 2)]), **apart},
        "norms": _mean([distances(each, nothing) for each in parts]),
    }


class Curvature(NamedTuple):
    """Derivatives of a domain's loss by the head's N = C K parameters."""

    gradient: Tensor  # g, (N,)
    hessian: Tensor  # H, (N, N)
    hgp: Tensor  # H g, (N,)


def curvature(batch: HeadBatch) -> Curvature:
    """Compute gradient, Hessian and HGP exactly."""
    gradient, hessian = head_gradient(batch).flatten(), full(batch) * batch.weight.numel()
    return Curvature(gradient, hessian, hessian @ gradient)


def distances(a: Curvature, b: Curvature) -> dict[str, float]:
    """Compute the distance between two domains by each measure; norms are not squared."""
    difference = a.hessian - b.hessian
    return {
        "gradient": float((a.gradient - b.gradient).norm()),
        "frobenius": float(difference.norm()),
        "spectral": float(torch.linalg.eigvalsh(difference).abs().max()),
        "hgp": float((a.hgp - b.hgp).norm()),
        "diagonal": float(difference.diagonal().norm()),
    }


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in found) / len(found) for name in MEASURES}


# -- Showing -----------------------------------------------------------------------------------------------------------


def render(comparison: Comparison, record: Record) -> str:
    """Render a table of the distances by round for the sources and for each target, and the final ones beside ERM's."""
    text = [f"# {comparison.title}", ""]
    text += ["QUICK: few examples and rounds. These numbers are no results.", ""] if record["quick"] else []
    text += [
        "Means over seeds, accuracy (%) with its standard error. Distances are those of gradient, Hessian (Frobenius "
        "norm, spectral norm, diagonal) and HGP of the domains' losses by the head, behind them what they are of the "
        "sources' mean norm. Targets were read after training had ended, for this alone. Made by `python -m "
        f"fedhess.simulations.{comparison.name}{' --quick' if record['quick'] else ''}`; seeds may come from several "
        "invocations."
    ]
    for rows in tables(record):
        lines = lines_of(rows)
        trained = [line for line in lines if line.rows]
        text += ["", f"## {heading(rows)}", "", shared_protocol(lines)]
        for place in trained[0].rows[0]["accuracy"] if trained else ():
            text += ["", f"Distances {_described(comparison, place)}:", "", _by_round(comparison, trained, place)]
        text += ["", *_beside_erm(comparison, trained)]
        notes = [*own_particulars(lines), *troubles(lines)]
        text += [f"- {note}" for note in [*notes, *dict.fromkeys(map(describe_machine, rows))]]
    return "\n".join(text)


def _described(comparison: Comparison, place: str) -> str:
    if place == SOURCES:
        return "between two sources"
    return f"between {comparison.label(place)} and the mean of the sources"


def _by_round(comparison: Comparison, lines: Sequence[Line], place: str) -> str:
    table = []
    for line in lines:
        accuracy = _over_seeds(line, _accuracy(place))
        curves = [
            [_over_seeds(line, _distance(place, name, of_norm=of_norm)) for of_norm in (False, True)]
            for name in MEASURES
        ]
        rounds = list(accuracy)
        step = max(1, len(rounds) // SHOWN)
        for number in [*rounds[:-2:step], rounds[-1]]:
            known = [line.label, ", ".join(map(str, line.seeds))] if number == rounds[0] else ["", ""]
            cells = [f"{short(of[number]['mean'])} ({100 * share[number]['mean']:.0f} %)" for of, share in curves]
            table.append([*known, str(number), shown(accuracy[number]), *cells])
    return markdown_table(["strategy", "seeds", "round", comparison.label(place), *MEASURES.values()], table, left=2)


def _beside_erm(comparison: Comparison, lines: Sequence[Line]) -> list[str]:
    """Compare the distances after the last round with ERM's: the ratio and its confidence interval."""
    ends = {line.label: {str(row["seed"]): row["course"][-1]["distances"] for row in line.rows} for line in lines}
    if BASELINE not in ends or len(ends) < 2:
        return []
    table = []
    others = [label for label in ends if label != BASELINE]
    for label, place in product(others, next(iter(ends[BASELINE].values()))):
        cells = []
        for name in MEASURES:
            ours, theirs = (
                {seed: math.log(found[place][name]) for seed, found in ends[each].items()} for each in (label, BASELINE)
            )
            cells.append(_multiple(paired_difference(ours, theirs)))
        table.append([label, _described(comparison, place), *cells])
    explained = (
        "After the last round, as multiples of ERM's (geometric mean over seeds, with a 95 % confidence interval by "
        "Student's t of the logarithms, paired by seed):"
    )
    return [explained, "", markdown_table(["strategy", "distances", *MEASURES.values()], table, left=2), ""]


def _multiple(cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return "n/a"
    low, centre, high = (None if cell[key] is None else math.exp(cell[key]) for key in ("low", "difference", "high"))
    return short(centre) + ("" if low is None else f" [{short(low)}, {short(high)}]")


def draw(comparison: Comparison, record: Record, path: Path) -> list[Path]:
    """Draw accuracies by round, and distances: of the sources, the same over their norm, and of the first target."""
    lines = [line for line in lines_of(tables(record)[0]) if line.rows]
    if not lines:
        return []
    sources, target, other = lines[0].rows[0]["accuracy"]
    panels = []
    for column, place, of_norm in ((sources, sources, False), (other, sources, True), (target, target, False)):
        accuracy = {line.label: _over_seeds(line, _accuracy(column)) for line in lines}
        panels.append(Panel(f"{comparison.label(column)}: accuracy (%)", accuracy))
        start = "target to sources: " if place == target else "sources: "
        for name, label in DRAWN.items():
            curves = {line.label: _over_seeds(line, _distance(place, name, of_norm=of_norm)) for line in lines}
            panels.append(Panel(f"{start}{label}{', of the norm' if of_norm else ''}", curves, logarithmic=True))
    title = comparison.title + (" (QUICK: no result)" if record["quick"] else "")
    note = f"{heading(lines[0].rows)}; bands: standard error of the mean over seeds, where there are several"
    shape = 3, 1 + len(DRAWN)
    with writing(path), drawing(path, shape, size=(2.6, 2.2), title=title, note=note, points=8.0) as axes:
        for axis, panel in zip(axes.flat, panels, strict=True):
            draw_panel(axis, panel, [line.label for line in lines])
    return written(path)


def _accuracy(column: str) -> Pick:
    return lambda point: float(point["accuracy"][column])


def _distance(place: str, name: str, *, of_norm: bool) -> Pick:
    return lambda point: float(point["distances"][place][name] / (point["norms"][name] if of_norm else 1))


def _over_seeds(line: Line, pick: Pick) -> Curve:
    found: dict[int, list[float | None]] = {}
    for point in (point for row in line.rows for point in row["course"]):
        found.setdefault(point["round"], []).append(pick(point))
    return {number: mean_and_error(values, unit=1.0) for number, values in sorted(found.items())}


@cli.command(cls=Command)
@with_options
def hessian_distances(options: Options, seeds: SeedsOption = "0,1,2,3,4") -> None:
    """Train, measure the distances of the domains' head Hessians after training, and show how they went."""
    jobs = configurations(
        strategies=options.strategies(STRATEGIES),
        seeds=read_seeds(seeds),
        per_domain=options.examples(quick=QUICK_EXAMPLES),
        every=QUICK_EVERY if options.quick else EVERY,
    )
    jobs = quickened(jobs) if options.quick else jobs
    run_scenario(COMPARISON, jobs, options, run=measure, render=render, draw=draw)


if __name__ == "__main__":
    sys.exit(run_command(cli, "hessian_distances"))
