"""Turn ``--engine`` and its options into the engine that runs the clients."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from fedhess.base.environment import check_device, resolve_device
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.engines.ray import require_ray, run_on_ray

ENGINES = ("in-process", "ray")


@dataclass(frozen=True)
class Engine:
    """Where clients run.

    Attributes:
        title: For headers.
        run: ``run(server_app, client_app, run_config=..., node_configs=...)``.
        gpus_per_client: GPUs that a client is given, or None where clients share what this process has.
    """

    title: str
    run: Callable[..., None]
    gpus_per_client: float | None = None

    def device(self, name: str) -> str:
        """Check the device of a run where clients run in this process; on Ray each worker does.

        Args:
            name: As ``--device``.

        Raises:
            UsageError: It is unknown or absent, or clients would not see it.
        """
        if self.gpus_per_client is None:
            return check_device(name)
        if name.startswith("cuda") and self.gpus_per_client == 0:
            raise UsageError(
                f"--gpus-per-client: the run's device is {name} and Ray would hide every GPU from the clients; give "
                "each a part of one, such as 0.25, or use --device cpu"
            )
        if name.startswith("cuda:"):
            raise UsageError(f"--device {name}: Ray chooses the GPU of each client; use --device cuda")
        if name in ("auto", "cuda") and self.gpus_per_client:
            return name
        return resolve_device("cpu" if name == "auto" else name)  # without a GPU of Ray's a client sees none


IN_PROCESS = Engine("in-process", run_in_process)


def choose_engine(
    name: str, *, cpus_per_client: int | None, gpus_per_client: float | None, ray_address: str | None
) -> Engine:
    """Make the engine of a name.

    Args:
        name: ``in-process`` or ``ray``.
        cpus_per_client: CPU cores for a client on Ray, by default 1.
        gpus_per_client: GPUs for a client on Ray, by default 0.
        ray_address: Address of a running cluster.

    Raises:
        UsageError: The name is unknown, Ray is not installed, or options of Ray are given to another engine.
    """
    if name not in ENGINES:
        raise UsageError(f"--engine: unknown engine {name!r}; {did_you_mean(name, ENGINES)}")
    given = {
        "--cpus-per-client": cpus_per_client,
        "--gpus-per-client": gpus_per_client,
        "--ray-address": ray_address,
    }
    if name == "in-process":
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} is for --engine ray; leave it out, or add --engine ray")
        return IN_PROCESS
    require_ray()
    cpus, gpus = cpus_per_client if cpus_per_client is not None else 1, gpus_per_client or 0.0
    run = functools.partial(run_on_ray, cpus_per_client=cpus, gpus_per_client=gpus, address=ray_address)
    where = f" at {ray_address}" if ray_address else ""
    return Engine(f"Ray{where}, {cpus} CPU(s) and {gpus:g} GPU(s) a client", run, gpus)
