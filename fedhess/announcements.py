"""What a command says before its results: what runs, and that the data is not what was asked for."""

import torch

from fedhess.domains import Benchmark
from fedhess.job import Job


def header(job: Job, *, engine: str) -> dict[str, str]:
    """Return what a reader must know about a job before its results."""
    config = job.runs[0].config
    batch = "all examples" if config.batch_size == 0 else f"{config.batch_size} examples"
    return {
        "data": job.benchmark.title,
        "domains": ", ".join(job.benchmark.domains),
        "model": config.model + ("" if config.pretrained else " (not pretrained)"),
        "strategies": ", ".join(job.strategies),
        "federation": f"{config.rounds} rounds, server {config.server_optimizer} lr {config.server_lr:.4g}",
        "clients": f"{config.local_steps} steps a round on {batch}, SGD lr {config.lr:g}",
        "engine": engine,
        "device": f"{config.device}, {config.threads or torch.get_num_threads()} thread(s)",
        "seeds": ", ".join(map(str, job.seeds)),
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


def stand_in_warning(benchmark: Benchmark) -> str:
    """Say that the data is not what was asked for."""
    return (
        f"{benchmark.name} stands in for {benchmark.stand_in_for}, which could not be had. The results below are about "
        f"{benchmark.name} and say nothing about {benchmark.stand_in_for}. --require-real fails instead and lists the "
        "ways to get the data."
    )
