"""Simulate a federation, in this process or on Ray: ``python -m fedhess.simulate --domains PACS``.

Trains on all domains but one, evaluates on the one left out, for every domain in turn; writes a run directory and
prints one table.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import typer

from fedhess.alignment.server_step import require_server
from fedhess.base.environment import torch_threads
from fedhess.base.errors import DivergedError, FederationError, StorageError, UsageError
from fedhess.cli import options
from fedhess.cli.command import Command, run_command
from fedhess.cli.listing import list_everything
from fedhess.domains import open_benchmark
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.examples import source_examples, source_shares
from fedhess.federation.engines.choice import IN_PROCESS, Engine, choose_engine
from fedhess.federation.engines.worker import CLIENT_THREAD
from fedhess.federation.server.app import make_server_app
from fedhess.jobs.description import header, incomplete_warning, stand_in_warning
from fedhess.jobs.directory import job_directory, record_selection, recorded_selection, require_begun, require_unused
from fedhess.jobs.partition_manifest import make_manifest, record_manifest, show_partitions
from fedhess.jobs.plan import Job, PlannedRun, plan_job
from fedhess.jobs.preparation import prepare_domains
from fedhess.jobs.progress import Progress
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.variants import describe, parse_variants
from fedhess.results.summary import summarise, table, write_report
from fedhess.settings.run_config import parse_assignments

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
def simulate(
    domains: options.Domains = "PACS",
    strategy: options.Strategy = "hgp",
    strategy_args: options.StrategyArgs = "",
    variants: options.Variants = "",
    target: options.Target = "all",
    split: options.Split = None,
    selection: options.Selection = None,
    partition: options.Partition = None,
    clients: options.Clients = None,
    heterogeneity: options.Heterogeneity = None,
    clients_per_domain: options.ClientsPerDomain = None,
    dirichlet_alpha: options.DirichletAlpha = None,
    dirichlet_min_size: options.DirichletMinSize = None,
    clients_per_round: options.ClientsPerRound = None,
    show_partition: options.ShowPartition = False,
    rounds: options.Rounds = None,
    local_steps: options.LocalSteps = None,
    local_epochs: options.LocalEpochs = None,
    batch_size: options.BatchSize = None,
    augment: options.Augment = None,
    client_optimizer: options.ClientOptimizer = None,
    lr: options.Lr = None,
    lr_drop_after: options.LrDropAfter = None,
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
    checkpoint_every: options.CheckpointEvery = None,
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
    precision: options.Precision = None,
    batchnorm: options.BatchNorm = None,
    compile_: options.Compile = False,
    deterministic: options.Deterministic = False,
    images: options.Images = None,
    image_cache_gb: options.ImageCacheGb = None,
    data_dir: options.DataDir = None,
    domains_args: options.DomainsArgs = "",
    require_real: options.RequireReal = False,
    skip_bad_images: options.SkipBadImages = False,
    out: options.Out = None,
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    list_all: options.ListAll = False,
    config: options.Config = None,
) -> None:
    """Train federated on some domains, evaluate on another that was never seen; repeat for every target.

    Where a default depends on the model, --list shows all of a model's settings.
    """
    del config  # its options are defaults of the others
    if list_all:
        typer.echo(list_everything())
        return
    if resume:
        require_begun(out)
    elif out is not None:
        require_unused(out)  # before any download
    if local_steps is not None and local_epochs:
        raise UsageError(f"--local-epochs {local_epochs}: --local-steps {local_steps} is given too; give one of them")
    progress = Progress(silent=quiet or as_json)
    chosen = choose_engine(
        engine, cpus_per_client=cpus_per_client, gpus_per_client=gpus_per_client, ray_address=ray_address
    )
    given = {
        "partition": partition,
        "clients": clients,
        "heterogeneity": heterogeneity,
        "clients_per_domain": clients_per_domain,
        "dirichlet_alpha": dirichlet_alpha,
        "dirichlet_min_size": dirichlet_min_size,
        "clients_per_round": clients_per_round,
        "rounds": rounds,
        "split": split,
        "local_steps": local_steps,
        "local_epochs": local_epochs,
        "client_optimizer": client_optimizer,
        "batch_size": batch_size,
        "augment": augment,
        "lr": lr,
        "lr_drop_after": lr_drop_after,
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
        "checkpoint_every": checkpoint_every,
        "seed": seed,
        "model": model,
        "pretrained": pretrained,
        "device": chosen.device(device),
        "threads": threads,
        "dtype": dtype,
        "precision": precision,
        "batchnorm": batchnorm,
        "compile": compile_,
        "deterministic": deterministic,
        "images": images,
        "image_cache_gb": image_cache_gb,
        "data_dir": None if data_dir is None else str(data_dir.resolve()),
    }
    names, several = [name.strip() for name in strategy.split(",") if name.strip()], parse_variants(variants)
    require_server(names, given, several)
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
    job = plan_job(
        benchmark,
        strategies=names,
        strategy_args=parse_assignments(strategy_args, option="--strategy-args"),
        target=target,
        trials=trials,
        overrides={key: value for key, value in given.items() if value is not None},
        out=out,
        variants=several,
        selection=selection or (recorded_selection(out) if resume and out is not None else DEFAULT),
        needs_weights=not show_partition,
    )
    for warning in filter(None, (stand_in_warning(benchmark), incomplete_warning(job))):
        progress.warn(warning)
    if show_partition:
        typer.echo(show_partitions(job, as_json=as_json))
        return
    with job_directory(job.path, job.description, resume=resume, selection=job.selection) as changes:
        if changes:
            progress.warn("Continued in another environment; bits may differ: " + "; ".join(changes))
        try:
            summary = run_job(job, progress, engine=chosen)
            record_selection(job.path, job.selection)
            paths = write_report(job, summary)
        except (FederationError, StorageError, KeyboardInterrupt) as error:
            kept = " in" if isinstance(error, DivergedError) else ": continue with --resume --out"
            sys.stderr.write(f"fedhess: stopped; the completed rounds are kept{kept} {job.path}\n")
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
    progress.header(header(job, engine=engine.title))
    prepare_domains(job.benchmark, config, progress)
    progress.start([run.config.rounds for run in job.runs])
    try:
        with torch_threads(config.threads):
            for number, run in enumerate(job.runs):
                label = f" ({describe(job.variants[run.variant])})" if job.variants else ""
                try:
                    _run(run, number, progress, engine, label=label, classes=job.benchmark.classes)
                except FederationError as error:
                    if not job.variants:
                        raise
                    progress.warn(f"{run.directory.path}{label} stopped; the other settings go on. {error}")
    finally:
        progress.stop()
    return summarise(job)


def _run(
    run: PlannedRun, number: int, progress: Progress, engine: Engine, *, label: str, classes: Sequence[str]
) -> None:
    run.directory.tidy()
    done = run.directory.completed_round() or 0
    progress.begin_run(number, f"{run.strategy}{label}, target {run.scenario.name}, seed {run.config.seed}", done)
    if done == run.config.rounds:
        run.directory.load_checkpoint()  # so that damage shows
        return
    shares = list(source_shares(run.config).values())
    manifest = make_manifest(run.config, shares, source_examples(run.config), classes=classes)
    record_manifest(run.directory.path, manifest)
    nodes = run.config.source_clients + len(run.config.targets)
    engine.run(
        make_server_app(run.directory, progress.update),
        client_app,
        run_config=run.config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": nodes} for index in range(nodes)],
    )


def main() -> None:
    """Run the command; every mistake of the user ends with one message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="fedhess: %(message)s", stream=sys.stderr)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower's strategies report every round
    status = run_command(cli)
    _abandon_clients(status)
    sys.exit(status)


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
