"""Simulate a federation in this process: ``python -m fedhess.simulate --domains PACS``.

Trains on all domains but one, evaluates on the one left out, for every domain in turn; writes a run directory and
prints one table.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from click import ClickException

from fedhess.client import app as client_app
from fedhess.config import optimizer_name, parse_assignments
from fedhess.domains import BENCHMARKS, Benchmark, open_benchmark
from fedhess.engines.inprocess import run_in_process
from fedhess.errors import FederationError, UsageError
from fedhess.job import Job, PlannedRun, environment, plan_job, resolve_device
from fedhess.loading import known_strategies
from fedhess.models import MODELS
from fedhess.progress import Progress
from fedhess.report import summarise, table, write_report
from fedhess.runs import Row
from fedhess.server import make_server_app

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

BY_MODEL = "default: by model, see fedhess/recipes.py"
FEDERATION, TRAINING, OUTPUT, DATA = "Federation", "Local training", "Output", "Data and model"


@cli.command(context_settings={"help_option_names": ["-h", "--help"]})
def simulate(
    domains: Annotated[str, typer.Option(help="Benchmark; --list names them all.", rich_help_panel=DATA)] = "PACS",
    strategy: Annotated[
        str, typer.Option(help="Strategies, separated by commas: names, entry points, or package.module:Class.")
    ] = "hgp",
    strategy_args: Annotated[
        str, typer.Option(help="Their arguments, key=value,...; NAME.key=value applies to one strategy only.")
    ] = "",
    target: Annotated[
        str, typer.Option(help="Domain left out of training, several separated by commas, A+B for two at once, or all.")
    ] = "all",
    rounds: Annotated[int | None, typer.Option(help=f"Rounds of training. [{BY_MODEL}]")] = None,
    local_steps: Annotated[int | None, typer.Option(help=f"Steps of a client in a round. [{BY_MODEL}]")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Examples a step; 0 takes all. [{BY_MODEL}]")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Learning rate of the clients' SGD. [{BY_MODEL}]")] = None,
    momentum: Annotated[float | None, typer.Option(help=f"Momentum of the clients' SGD. [{BY_MODEL}]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help=f"Weight decay of the clients' SGD. [{BY_MODEL}]")] = None,
    l2: Annotated[float | None, typer.Option(help=f"L2 term in the loss, times sum of squares. [{BY_MODEL}]")] = None,
    server_optimizer: Annotated[
        str | None, typer.Option(help="Class of torch.optim that steps along the mean update. [default: SGD]")
    ] = None,
    server_lr: Annotated[
        float | None, typer.Option(help="Its learning rate; SGD with 1 is federated averaging. [default: 1]")
    ] = None,
    server_optimizer_args: Annotated[str, typer.Option(help="Its other arguments, key=value,...")] = "",
    weighting: Annotated[
        str | None, typer.Option(help="Mean over clients: domain (equal) or examples. [default: domain]")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(help="Source clients every phase needs; 0 for all of them. [default: 0]")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds a client may take to train or evaluate. [default: 3600]")
    ] = None,
    exchange_deadline: Annotated[
        float | None, typer.Option(help="Seconds a client may take for statistics. [default: 600]")
    ] = None,
    statistics_batches: Annotated[
        int | None, typer.Option(help="Batches behind a round's reference statistics. [default: 1]")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(help=f"Rounds between evaluations. [{BY_MODEL}]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first trial.")] = 0,
    trials: Annotated[int, typer.Option(help="Number of trials; their seeds count up from --seed.")] = 1,
    model: Annotated[str | None, typer.Option(help="Model. [default: the benchmark's]", rich_help_panel=DATA)] = None,
    pretrained: Annotated[
        bool, typer.Option(help="Begin from ImageNet weights where the model has them.", rich_help_panel=DATA)
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64. [default: float32]")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the data.", envvar="FEDHESS_DATA", rich_help_panel=DATA),
    ] = None,
    domains_args: Annotated[
        str, typer.Option(help="Options of the benchmark, key=value,...", rich_help_panel=DATA)
    ] = "",
    require_real: Annotated[
        bool, typer.Option("--require-real", help="Fail rather than use a stand-in.", rich_help_panel=DATA)
    ] = False,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Skip and count undecodable images.", rich_help_panel=DATA)
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="New directory for the job. [default: runs/NAME]", rich_help_panel=OUTPUT)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job in --out.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the final table only.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON only.", rich_help_panel=OUTPUT)
    ] = False,
    list_all: Annotated[
        bool, typer.Option("--list", help="List benchmarks, strategies and models, and stop.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Train federated on some domains, evaluate on another that was never seen; repeat for every target."""
    if list_all:
        typer.echo(listing())
        return
    silent = quiet or as_json
    progress = Progress(silent=silent)
    benchmark = open_benchmark(
        domains,
        data_dir=data_dir,
        require_real=require_real,
        skip_bad_images=skip_bad_images,
        seed=seed,
        options=parse_assignments(domains_args, option="--domains-args") or None,
        notify=progress.note,
    )
    overrides = {
        "rounds": rounds,
        "local_steps": local_steps,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "l2": l2,
        "server_optimizer": server_optimizer,
        "server_lr": server_lr,
        "weighting": weighting,
        "quorum": quorum,
        "deadline": deadline,
        "exchange_deadline": exchange_deadline,
        "statistics_batches": statistics_batches,
        "evaluate_every": evaluate_every,
        "model": model,
        "dtype": dtype,
    }
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    given |= {"seed": seed, "device": resolve_device(device), "pretrained": pretrained}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.resolve())
    if server_optimizer_args:
        given["server_optimizer_args"] = parse_assignments(server_optimizer_args, option="--server-optimizer-args")
    job = plan_job(
        benchmark,
        strategies=[name.strip() for name in strategy.split(",") if name.strip()],
        strategy_args=parse_assignments(strategy_args, option="--strategy-args"),
        target=target,
        trials=trials,
        overrides=given,
        out=out,
    )
    if resume and out is None:
        raise UsageError("--resume: give --out the directory of the job to continue")
    job.begin(resume=resume)
    summary = run_job(job, progress)
    paths = write_report(job, summary)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    typer.echo(table(summary))
    if not quiet:
        typer.echo(f"\nwritten: {', '.join(str(path) for path in paths)}")


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Run every run of a job that is not complete yet, in this process, and summarise them.

    Raises:
        FederationError: A round could not be completed.
    """
    progress.header(header(job))
    progress.start([run.config.rounds for run in job.runs])
    try:
        for number, run in enumerate(job.runs):
            _run(run, number, progress)
    finally:
        progress.stop()
    return summarise(job)


def header(job: Job) -> dict[str, str]:
    """Return what a reader must know about a job before its results."""
    config = job.runs[0].config
    optimizer = f"{config.server_optimizer}, lr {config.server_lr:g}"
    return {
        "data": job.benchmark.title,
        "domains": ", ".join(job.benchmark.domains),
        "model": config.model + ("" if config.pretrained else " (not pretrained)"),
        "strategies": ", ".join(dict.fromkeys(run.strategy for run in job.runs)),
        "federation": f"{config.rounds} rounds x {config.local_steps} local steps, server {optimizer}",
        "engine": "in-process",
        "device": f"{config.device}, {environment()['torch_threads']} threads",
        "seeds": ", ".join(map(str, sorted({run.config.seed for run in job.runs}))),
        "directory": str(job.path),
    }


def listing() -> str:
    """Return the names of benchmarks, strategies and models."""
    lines = [f"benchmarks  {', '.join(BENCHMARKS)}", f"strategies  {', '.join(known_strategies())}"]
    return "\n".join([*lines, f"models      {', '.join(MODELS)}"])


def _run(run: PlannedRun, number: int, progress: Progress) -> None:
    done = run.directory.completed_round() or 0
    label = f"{run.strategy}, target {run.scenario.name}, seed {run.config.seed}"
    progress.begin_run(number, label, done)
    if done == run.config.rounds:
        return

    def on_round(server_round: int, rows: list[Row]) -> None:
        progress.update(server_round, rows)

    domains = (*run.config.sources, *run.config.targets)
    run_in_process(
        make_server_app(run.directory, on_round),
        client_app,
        run_config=run.config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": len(domains)} for index in range(len(domains))],
    )


def main() -> None:
    """Run the command; every mistake of the user ends with one message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="fedhess: %(message)s", stream=sys.stderr)
    try:
        cli(standalone_mode=False)
    except UsageError as error:
        sys.stderr.write(f"fedhess: {error}\n")
        sys.exit(2)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FederationError as error:
        sys.stderr.write(f"fedhess: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write(
            "fedhess: interrupted; the completed rounds are kept, continue with --resume --out DIRECTORY\n"
        )
        sys.exit(130)


__all__ = ["Benchmark", "cli", "header", "listing", "main", "optimizer_name", "run_job"]

if __name__ == "__main__":
    main()
