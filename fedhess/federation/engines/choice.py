"""Turn ``--engine`` and its options into the engine that runs the clients."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from fedhess.base.environment import check_device, resolve_device
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.engines.ray import require_ray, run_on_ray

ENGINES = ("in-process", "ray")


@dataclass(frozen=True)
class Engine:
    """Where clients run: ``run(server_app, client_app, run_config=..., node_configs=...)``, with a title for headers.

    ``gpus_per_client`` is None where clients share the GPUs of this process.
    """

    title: str
    run: Callable[..., None]
    gpus_per_client: float | None = None

    def device(self, name: str) -> str:
        """Check ``--device`` and return the run's device; on Ray each worker checks the GPU itself."""
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
        return resolve_device("cpu" if name == "auto" else name)  # without a GPU from Ray a client sees none


IN_PROCESS = Engine("in-process", run_in_process)


def choose_engine(
    name: str, *, cpus_per_client: int | None, gpus_per_client: float | None, ray_address: str | None
) -> Engine:
    """Make the engine of a name; on Ray a client has 1 CPU core and no GPU by default."""
    if name not in ENGINES:
        raise UsageError(f"--engine: unknown engine {name!r}; {did_you_mean(name, ENGINES)}")
    if name == "in-process":
        for option, value in (
            ("--cpus-per-client", cpus_per_client),
            ("--gpus-per-client", gpus_per_client),
            ("--ray-address", ray_address),
        ):
            if value is not None:
                raise UsageError(f"{option} is for --engine ray; leave it out, or add --engine ray")
        return IN_PROCESS
    require_ray("--engine ray", instead="use --engine in-process")
    cpus, gpus = 1 if cpus_per_client is None else cpus_per_client, gpus_per_client or 0.0
    if cpus < 1 or not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(
            "expected --cpus-per-client of at least 1 and --gpus-per-client as a fraction below 1 or a whole number, "
            f"got {cpus} and {gpus:g}"
        )
    run = functools.partial(run_on_ray, cpus_per_client=cpus, gpus_per_client=gpus, address=ray_address)
    where = f" at {ray_address}" if ray_address else ""
    return Engine(f"Ray{where}, {cpus} CPU(s) and {gpus:g} GPU(s) a client", run, gpus)
