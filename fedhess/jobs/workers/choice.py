"""Turn ``--parallel`` and its options into workers; without it, a job's runs take turns in this process."""

from dataclasses import dataclass, field

from fedhess.base.errors import UsageError
from fedhess.cli.options import JobOptions
from fedhess.federation.engines.choice import Engine, choose_engine
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.jobs.workers.pool import Workers
from fedhess.jobs.workers.processes import LocalWorkers, read_gpus
from fedhess.jobs.workers.ray import RayWorkers
from fedhess.jobs.workers.slurm import SlurmWorkers, read_slurm_args

MOST_WORKERS = 1024


@dataclass(frozen=True)
class SideBySide(Engine):
    """Clients run in process, each run of the job on a worker."""

    workers: Workers = field(kw_only=True)

    def device(self, name: str) -> str:
        """Check the device of a run for the place where the workers are."""
        return self.workers.check_device(name)


def choose_place(options: JobOptions) -> Engine:
    """Choose where the runs of a job and their clients are executed."""
    if options.parallel is None:
        for option, given in (
            ("--gpus", options.gpus),
            ("--slurm", options.slurm),
            ("--slurm-args", options.slurm_args),
        ):
            if given not in (None, False, ""):
                raise UsageError(
                    f"{option} is for --parallel; leave it out, or add --parallel N, the runs side by side"
                )
        if options.ray_address is not None and options.engine != "ray":
            raise UsageError("--ray-address is for --engine ray and --parallel; leave it out, or add one of them")
        return choose_engine(
            options.engine,
            cpus_per_client=options.cpus_per_client,
            gpus_per_client=options.gpus_per_client,
            ray_address=options.ray_address,
        )
    if not 1 <= options.parallel <= MOST_WORKERS:
        raise UsageError(f"--parallel: expected 1 to {MOST_WORKERS} workers, got {options.parallel}")
    if options.engine != "in-process":
        raise UsageError(
            f"--engine {options.engine}: --parallel {options.parallel} lets whole runs go side by side, --engine ray "
            "the clients of one run; leave one of the two out (for runs on a Ray cluster: --parallel and --ray-address)"
        )
    workers = _choose_workers(options, options.parallel)
    return SideBySide(f"in-process, runs side by side on {workers.title}", run_in_process, workers=workers)


def _choose_workers(options: JobOptions, count: int) -> Workers:
    on_ray, on_slurm = options.ray_address is not None, options.slurm
    if on_ray and on_slurm:
        raise UsageError("--slurm, --ray-address: the runs are on one of them; leave the other out")
    elsewhere = "--slurm" if on_slurm else "--ray-address"
    misplaced = {
        "--cpus-per-client": (options.cpus_per_client is not None, "it is for --engine ray; --threads sets a run's"),
        "--gpus-per-client": (options.gpus_per_client is not None, "it is for --engine ray"),
        "--gpus": (options.gpus is not None and (on_ray or on_slurm), f"{elsewhere} shares GPUs out itself"),
        "--slurm-args": (bool(options.slurm_args) and not on_slurm, "it is for --slurm"),
    }
    for option, (given, why) in misplaced.items():
        if given:
            raise UsageError(f"{option}: {why}; leave it out")
    if options.ray_address is not None:
        return RayWorkers(count, options.ray_address)
    if on_slurm:
        return SlurmWorkers(count, read_slurm_args(options.slurm_args))
    return LocalWorkers(count, read_gpus(options.gpus) if options.gpus is not None else ())
