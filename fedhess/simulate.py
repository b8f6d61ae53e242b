"""Simulate a federation, in this process or on Ray: ``python -m fedhess.simulate --domains PACS``.

Trains on all domains but one, evaluates on the one left out, for every domain in turn; writes a run directory and
prints one table.
"""

import json
import logging
import os
import sys
import threading
from typing import Any

import click
import typer

from fedhess import options
from fedhess.announcements import header, stand_in_warning
from fedhess.client import app as client_app
from fedhess.config import parse_assignments
from fedhess.domains import open_benchmark
from fedhess.engines.choice import IN_PROCESS, Engine, choose_engine
from fedhess.engines.worker import CLIENT_THREAD
from fedhess.environment import resolve_device, torch_threads
from fedhess.errors import FederationError, UsageError
from fedhess.job import Job, PlannedRun, plan_job
from fedhess.job_directory import job_directory, require_unused
from fedhess.listing import list_everything
from fedhess.models import prepare_inputs
from fedhess.progress import Progress
from fedhess.report import summarise, table, write_report
from fedhess.runs import StorageError
from fedhess.server import make_server_app

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def simulate(
    domains: options.Domains = "PACS",
    strategy: options.Strategy = "hgp",
    strategy_args: options.StrategyArgs = "",
    target: options.Target = "all",
    rounds: options.Rounds = None,
    local_steps: options.LocalSteps = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    momentum: options.Momentum = None,
    weight_decay: options.WeightDecay = None,
    l2: options.L2 = None,
    server_optimizer: options.ServerOptimizer = None,
    server_lr: options.ServerLr = None,
    server_optimizer_args: options.ServerOptimizerArgs = "",
    weighting: options.Weighting = None,
    quorum: options.Quorum = None,
    deadline: options.Deadline = None,
    exchange_deadline: options.ExchangeDeadline = None,
    statistics_batches: options.StatisticsBatches = None,
    references: options.References = None,
    evaluate_every: options.EvaluateEvery = None,
    seed: options.Seed = 0,
    trials: options.Trials = 3,
    model: options.Model = None,
    pretrained: options.Pretrained = True,
    engine: options.Engine = "in-process",
    cpus_per_client: options.CpusPerClient = None,
    gpus_per_client: options.GpusPerClient = None,
    ray_address: options.RayAddress = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    data_dir: options.DataDir = None,
    domains_args: options.DomainsArgs = "",
    require_real: options.RequireReal = False,
    skip_bad_images: options.SkipBadImages = False,
    out: options.Out = None,
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    list_all: options.ListAll = False,
) -> None:
    """Train federated on some domains, evaluate on another that was never seen; repeat for every target.

    Where a default depends on the model, --list shows all of a model's settings.
    """
    if list_all:
        typer.echo(list_everything())
        return
    if resume and out is None:
        raise UsageError("--resume: expected --out with the directory of the job to continue, got none")
    if out is not None and not resume:
        require_unused(out)  # before any download
    progress = Progress(silent=quiet or as_json)
    chosen = choose_engine(
        engine, cpus_per_client=cpus_per_client, gpus_per_client=gpus_per_client, ray_address=ray_address
    )
    given = {
        "rounds": rounds,
        "local_steps": local_steps,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "l2": l2,
        "server_optimizer": server_optimizer,
        "server_lr": server_lr,
        "server_optimizer_args": parse_assignments(server_optimizer_args, option="--server-optimizer-args") or None,
        "weighting": weighting,
        "quorum": quorum,
        "deadline": deadline,
        "exchange_deadline": exchange_deadline,
        "statistics_batches": statistics_batches,
        "references": references,
        "evaluate_every": evaluate_every,
        "seed": seed,
        "model": model,
        "pretrained": pretrained,
        "device": resolve_device(device),
        "threads": threads,
        "dtype": dtype,
        "data_dir": None if data_dir is None else str(data_dir.resolve()),
    }
    options_given = parse_assignments(domains_args, option="--domains-args")
    try:
        benchmark = open_benchmark(
            domains,
            data_dir=data_dir,
            require_real=require_real,
            skip_bad_images=skip_bad_images,
            seed=seed,
            options=options_given,
            notify=progress.note,
        )
    except UsageError as error:
        raise UsageError(f"--domains {domains}: {error}") from error
    if data_dir is not None and "data_dir" not in benchmark.options:
        raise UsageError(f"--data-dir: {benchmark.title} reads no folder, got {data_dir}; leave the option out")
    if benchmark.stand_in_for:
        progress.warn(stand_in_warning(benchmark))
    job = plan_job(
        benchmark,
        strategies=[name.strip() for name in strategy.split(",") if name.strip()],
        strategy_args=parse_assignments(strategy_args, option="--strategy-args"),
        target=target,
        trials=trials,
        overrides={key: value for key, value in given.items() if value is not None},
        out=out,
    )
    with job_directory(job.path, job.description, resume=resume) as changes:
        if changes:
            progress.warn("Continued in another environment; bits may differ: " + "; ".join(changes))
        try:
            summary = run_job(job, progress, engine=chosen)
            paths = write_report(job, summary)
        except (FederationError, StorageError, KeyboardInterrupt):
            sys.stderr.write(
                f"fedhess: stopped; the completed rounds are kept: continue with --resume --out {job.path}\n"
            )
            raise
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    typer.echo(table(summary))
    if not quiet:
        typer.echo(f"\nwritten: {', '.join(str(path) for path in paths)}")


def run_job(job: Job, progress: Progress, *, engine: Engine = IN_PROCESS) -> dict[str, Any]:
    """Run every run of a job that is not complete yet, and summarise them.

    Args:
        job: The job.
        progress: Told what happens.
        engine: Where clients run.

    Raises:
        UsageError: The engine cannot run the job here.
        FederationError: A round could not be completed.
        StorageError: A round could not be written.
    """
    config = job.runs[0].config
    engine.check(config)
    progress.header(header(job, engine=engine.title))
    for domain in job.benchmark.domains:  # the clients find the result in the cache
        prepare_inputs(config.model, job.benchmark.load(domain), device=config.device, notify=progress.tick)
    progress.start([run.config.rounds for run in job.runs])
    try:
        with torch_threads(config.threads):
            for number, run in enumerate(job.runs):
                _run(run, number, progress, engine)
    finally:
        progress.stop()
    return summarise(job)


def _run(run: PlannedRun, number: int, progress: Progress, engine: Engine) -> None:
    run.directory.tidy()
    done = run.directory.completed_round() or 0
    progress.begin_run(number, f"{run.strategy}, target {run.scenario.name}, seed {run.config.seed}", done)
    if done == run.config.rounds:
        return
    domains = (*run.config.sources, *run.config.targets)
    engine.run(
        make_server_app(run.directory, progress.update),
        client_app,
        run_config=run.config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": len(domains)} for index in range(len(domains))],
    )


def main() -> None:
    """Run the command; every mistake of the user ends with one message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="fedhess: %(message)s", stream=sys.stderr)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower's strategies report every round
    status = _run_command()
    _abandon_clients(status)
    sys.exit(status)


def _run_command() -> int:
    try:
        return int(cli(standalone_mode=False) or 0)  # 130 after Ctrl-C
    except UsageError as error:
        sys.stderr.write(f"fedhess: {error}\n")
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FederationError, StorageError) as error:
        sys.stderr.write(f"fedhess: {error}\n")
        return 1


def _abandon_clients(status: int) -> None:
    """End the process at once if a client still computes: at the interpreter's own end its thread would abort it."""
    clients = [thread for thread in threading.enumerate() if thread.name == CLIENT_THREAD]
    for thread in clients:
        thread.join(timeout=0.5)
    if any(thread.is_alive() for thread in clients):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
