"""What a command says before its results: what runs, and that the data is not what was asked for."""

import torch

from fedhess.alignment.server_step import describe_server
from fedhess.domains import Benchmark
from fedhess.jobs.plan import Job
from fedhess.settings.run_config import RunConfig


def header(job: Job, *, engine: str) -> dict[str, str]:
    """Return what a reader must know about a job before its results."""
    config = job.runs[0].config
    args = {run.strategy: run.config.strategy_args for run in job.runs}
    server = describe_server(f"{config.server_optimizer} lr {config.server_lr:.4g}", args)
    lr = f"{config.lr:g}{config.lr_drop}"
    batch = "all examples" if config.batch_size == 0 else f"{config.batch_size} examples"
    runs = {"runs": cost(job)} if job.variants or job.selection == "lodo" else {}
    return {
        "data": job.benchmark.title,
        "domains": ", ".join(job.benchmark.domains),
        "model": ", ".join([config.model, *_manner(config)]),
        "strategies": ", ".join(job.strategies),
        "federation": f"{config.rounds} rounds, server {server}",
        **({"partition": config.describe_clients()} if config.describe_clients() else {}),
        "clients": f"{config.local_work} a round on {batch}, {config.client_optimizer} lr {lr}",
        "engine": engine,
        "device": f"{config.device_here}, {config.threads or torch.get_num_threads()} thread(s)",
        "seeds": ", ".join(map(str, job.seeds)),
        **runs,
        "directory": str(job.path),
    }


def incomplete_warning(job: Job) -> str:
    """Say that the data is not the complete copy; nothing when it is, or when that is not known."""
    if not job.differences:
        return ""
    return (
        f"This is not the complete {job.benchmark.name}: {'; '.join(job.differences)}. Results are not comparable with "
        "published ones. `python -m fedhess.data check` looks the data through."
    )


def _manner(config: RunConfig) -> list[str]:
    """Say what is unusual about how a model is made, run and fed."""
    unusual = {
        "not pretrained": not config.pretrained,
        "bf16": config.precision == "bf16",
        "compiled": config.compile,
        "deterministic": config.deterministic,
        "batch norms averaged": config.batchnorm == "averaged",
        f"augmentation {config.augment}": config.augment != "none",
        "images decoded whenever used": config.images == "streamed",
    }
    return [text for text, applies in unusual.items() if applies]


def cost(job: Job) -> str:
    """Say what a job with several settings or with cross-validation runs, before it does."""
    outer, rounds = len(job.outer_runs), sum(run.config.rounds for run in job.runs)
    inner = len(job.runs) - outer
    several = f", {len(job.variants)} settings among them" if job.variants else ""
    more = f" and {inner} more for cross-validation" if inner else ""
    return f"{outer}{several}{more}: {len(job.runs)} runs, {rounds:,} rounds of training"


def stand_in_warning(benchmark: Benchmark) -> str:
    """Say that the data is not what was asked for; nothing when it is."""
    if not benchmark.stand_in_for:
        return ""
    return (
        f"{benchmark.name} stands in for {benchmark.stand_in_for}, which could not be had. The results below are about "
        f"{benchmark.name} and say nothing about {benchmark.stand_in_for}. --require-real fails instead and lists the "
        "ways to get the data."
    )
