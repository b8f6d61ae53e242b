"""Measure how far trained models transfer, beside the bound by Hessians.

    python -m fedhess.simulations.transferability                     # IconPACS, every method, one trial
    python -m fedhess.simulations.transferability --domains EmojiStyles --strategy erm,hgp,hutchinson --trials 3
    python -m fedhess.simulations.transferability --quick

For every method, the transfer measure from the mean of the source domains to the target domain is computed over balls
of heads around the trained head. It is shown beside delta^2 / 2 * ||H_T - H_S||_2; ``transfer/ascent.py`` states what
each figure assumes.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.base.files import writing
from fedhess.cli.command import Command, run_command
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.jobs.description import whole_protocol
from fedhess.jobs.job import Job, history, slug
from fedhess.jobs.plan import plan_job
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_finished
from fedhess.jobs.running import run_job
from fedhess.results.domain_views import view_domains
from fedhess.results.models import ROUND_HELP, SELECTED, RunModel, find_models
from fedhess.simulations.scenarios.outputs import (
    QUICK_RESULTS,
    RESULTS,
    AllowDirtyOption,
    RenderOption,
    require_ready,
    write_results,
)
from fedhess.simulations.scenarios.records import load_record
from fedhess.simulations.transfer.ascent import transfer_curve
from fedhess.simulations.transfer.landscapes import DomainLandscape, minimum_loss, stacked_head
from fedhess.simulations.transfer.report import draw, render

DOMAINS = "IconPACS"
METHODS = ("erm", "irm", "vrex", "coral", "fishr", "hgp", "hutchinson")
DELTAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
QUICK_METHODS, QUICK_DELTAS = ("erm", "hgp", "hutchinson"), (0.001, 0.01, 0.1, 1.0)
MOST_EXAMPLES = 1024  # of a domain

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def plan(
    folder: Path, *, domains: str = DOMAINS, strategies: Sequence[str] = METHODS, trials: int = 1, quick: bool = False
) -> Job:
    """Plan the runs below a folder: each domain of a benchmark held out in turn; with ``quick`` the last one alone."""
    benchmark = open_benchmark(domains)
    return plan_job(
        benchmark,
        strategies=strategies,
        strategy_args={},
        target=benchmark.scenarios[-1].name if quick else "all",
        trials=trials,
        overrides={},
        out=folder,
    )


def measure_job(job: Job, *, quick: bool, progress: Progress, which: str = SELECTED) -> dict[str, Any]:
    """Measure every run of a finished job; the result is JSON."""
    deltas = QUICK_DELTAS if quick else DELTAS
    runs: list[dict[str, Any]] = []
    models = find_models(job, which)
    for number, model in enumerate(models, start=1):
        run = model.run
        progress.tick(f"[{number}/{len(models)}] {run.strategy}, target {run.scenario.name}, seed {run.config.seed}")
        runs.append(measure_run(model, deltas=deltas))
    return {
        "title": job.data["title"],
        "stand_in_for": job.data["stand_in_for"],
        "protocol": whole_protocol(job, sorted({model.chosen_by for model in models})),
        "seeds": job.seeds,
        "quick": quick,
        "targets": list(dict.fromkeys(run.scenario.name for run in job.outer_runs)),
        "examples": f"sources' held-out split, the whole target, at most {MOST_EXAMPLES} examples a domain",
        "published": "not verified: the paper's figures could not be read",
        "environment": describe_environment(),  # of the measurement
        "trained": [each["environment"] for each in history(job.record)],  # of the training, if another command did it
        "runs": runs,
    }


def measure_run(model: RunModel, *, deltas: tuple[float, ...]) -> dict[str, Any]:
    """Measure the transfer from the mean of a run's sources to the mean of its targets, under one of its models.

    Returns:
        JSON: the model's round, losses, excess gap and target accuracy at the trained head, and the points over delta.
    """
    run, views = model.run, view_domains(model, most_examples=MOST_EXAMPLES)
    source, target = (DomainLandscape([view.batch for view in views if view.role == role]) for role in (SOURCE, TARGET))
    head = stacked_head(views[0].batch)
    source_loss, target_loss = (float(each.value_and_gradient(head[None])[0][0]) for each in (source, target))
    excess_gap = (target_loss - minimum_loss(target, head)) - (source_loss - minimum_loss(source, head))
    accuracies = [view.accuracy for view in views if view.role == TARGET]
    return {
        "strategy": run.strategy,
        "scenario": run.scenario.name,
        "setting": run.number,
        "seed": run.config.seed,
        "round": model.server_round,
        "target_accuracy": sum(accuracies) / len(accuracies),
        "source_loss": source_loss,
        "target_loss": target_loss,
        "excess_gap": excess_gap,
        "head_norm": float(head.norm()),
        "points": [asdict(p) for p in transfer_curve(source, target, head, deltas=deltas, seed=run.config.seed)],
    }


@cli.command(cls=Command)
def transferability(
    domains: Annotated[str, typer.Option(help="The benchmark, whose domains are each held out in turn.")] = DOMAINS,
    strategy: Annotated[
        str, typer.Option(help=f"Strategies, separated by commas. [default: {','.join(METHODS)}]", show_default=False)
    ] = "",
    trials: Annotated[int, typer.Option(help="Trials, seeds 0, 1, ...", min=1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Three methods, one target, fewer radii.")] = False,
    job_directory: Annotated[
        Path | None, typer.Option("--job", help="A finished job of fedhess.simulate to measure instead of training.")
    ] = None,
    which: Annotated[str, typer.Option("--round", help=ROUND_HELP)] = SELECTED,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the results; .md and .png go beside it. [default: transferability.json, of other domains "
            "transferability-NAME.json, in simulations/results, quick: runs/quick]"
        ),
    ] = None,
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Train the methods, measure how they transfer, print a table and write it down."""
    if job_directory is not None and (domains, strategy, trials) != (DOMAINS, "", 1):
        raise UsageError("--domains, --strategy, --trials: a finished job has its own; leave them out, or --job")
    finished = None if job_directory is None else open_finished(job_directory)
    measured = domains if finished is None else finished.data["name"]
    name = "transferability" if measured.lower() == DOMAINS.lower() else f"transferability-{slug(measured)}"
    path = out or (QUICK_RESULTS if quick else RESULTS) / f"{name}.json"
    require_ready(path, allow_dirty=allow_dirty, render_only=render_only, quick=quick)
    recorded = load_record(path, quick=quick)  # before anything is trained: quick results do not replace full ones
    progress = Progress()
    if render_only:
        result = recorded
    elif finished is not None:
        result = measure_job(finished, quick=quick, progress=progress, which=which)
    else:
        with tempfile.TemporaryDirectory() as folder:
            methods = QUICK_METHODS if quick else METHODS
            chosen = [each.strip() for each in strategy.split(",")] if strategy else methods
            job = plan(Path(folder), domains=domains, strategies=chosen, trials=trials, quick=quick)
            run_job(job, progress)
            result = measure_job(job, quick=quick, progress=progress, which=which)
    typer.echo(render(result))
    write_results(path, result, render(result))
    with writing(path):
        draw(path.with_suffix(".png"), result)


if __name__ == "__main__":
    sys.exit(run_command(cli, "transferability"))
