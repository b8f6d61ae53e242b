"""Run an unchanged ServerApp and ClientApp on Flower's Ray simulation, on this machine or on a cluster.

Clients run side by side in Ray actors, which may lie on other machines. What the in-process engine promises holds here
too: the run config and the node configs reach the clients, a deadline counts for each client from when it begins, what
a client raises is a named failure, and the weights at the end are the same bits at equal torch thread counts. Any actor
may serve any client, so a client may find that its process does not hold the model: it is then sent again.
"""

import functools
import importlib
import importlib.util
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import lru_cache
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhess.base.errors import UsageError
from fedhess.federation import protocol
from fedhess.federation.engines.patient_grid import CLIENT_TIMED_OUT, PatientGrid
from fedhess.federation.engines.worker import CLIENT_THREAD, Worker, answer
from fedhess.federation.flower_compat import (
    SUPERLINK_NODE_ID,
    run_flower_simulation,
    run_identity,
)
from fedhess.settings.run_config import RunConfig, Scalar

CONNECT_SECONDS = 10.0
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def run_on_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    run_config: Mapping[str, Scalar],
    node_configs: Sequence[Mapping[str, Scalar]],
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    address: str | None = None,
) -> None:
    """Run a federation to its end on Ray.

    Args:
        server_app: The ServerApp; it runs in a thread of this process.
        client_app: The ClientApp; pickled to the actors.
        run_config: The run config of both.
        node_configs: One node config a client.
        cpus_per_client: CPU cores that Ray sets aside for a running client.
        gpus_per_client: GPUs that Ray sets aside for a running client; a fraction lets several share one.
        address: Address of a running Ray cluster; without one a cluster is started on this machine for the run.

    Raises:
        UsageError: Ray is not installed, no cluster answers, or no machine of it has room for a client.
        Exception: Whatever the ServerApp raises.
    """
    actors = _connect(cpus_per_client, gpus_per_client, len(node_configs), address)
    stop = threading.Event()
    wrapped = ServerApp()

    @wrapped.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(PatientGrid(grid, stop, actors=actors), context)

    run_id = 1
    before = set(threading.enumerate())
    try:
        with run_identity(run_id):
            run_flower_simulation(
                wrapped,
                _Client(client_app, run_config, node_configs),  # type: ignore[arg-type]  # called as one
                context=Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)),
                nodes=len(node_configs),
                client_resources={"num_cpus": cpus_per_client, "num_gpus": gpus_per_client},
            )
    finally:
        stop.set()  # Ctrl-C, or a crash of the simulation: nobody will answer the server any more
        for thread in set(threading.enumerate()) - before:
            if not thread.daemon:  # it waits for an actor that is gone, and would hold up the exit for ever
                thread.name = CLIENT_THREAD


def require_ray() -> None:
    """Insist that Ray is installed.

    Raises:
        UsageError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed; pip install 'fedhess[ray]', or use --engine in-process")


def _connect(cpus: int, gpus: float, clients: int, address: str | None) -> int:
    """Attach to a cluster or start one; return how many clients it runs side by side."""
    require_ray()
    if cpus < 1 or not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(
            "expected --cpus-per-client of at least 1 and --gpus-per-client as a fraction below 1 or a whole number, "
            f"got {cpus} and {gpus:g}"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")  # an extra, and slow to import
    if not ray.is_initialized():
        if address:
            _require_answer(address)
        # Actors do not see what this process added to its path, such as the folder of a user's strategy.
        path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
        own = {} if address else {"num_cpus": min(os.cpu_count() or 1, cpus * clients), "include_dashboard": False}
        try:
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                logging_level=logging.ERROR,
                log_to_driver=False,
                **own,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address or "this machine", error) from error
    actors = sum(_room(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])
    if actors == 0:
        found = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        ray.shutdown()
        raise UsageError(
            f"no machine of the Ray cluster has room for a client of {cpus} CPUs and {gpus:g} GPUs: it has {found} in "
            "all; lower --cpus-per-client or --gpus-per-client"
        )
    return actors


def _require_answer(address: str) -> None:
    """Insist that somebody listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"--ray-address: no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave "
        "the option out"
    )


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    room = int(resources.get("CPU", 0) / cpus)
    return min(room, int(resources.get("GPU", 0) / gpus)) if gpus else room


class _Client:
    """The ClientApp as an actor calls it: with the run's configs, and no longer than its deadline.

    Args:
        client_app: The ClientApp.
        run_config: The run config; Flower's simulation gives an object none.
        node_configs: By partition id.
    """

    def __init__(
        self, client_app: ClientApp, run_config: Mapping[str, Scalar], node_configs: Sequence[Mapping[str, Scalar]]
    ) -> None:
        self._client_app = client_app
        self._run_config = dict(run_config)
        self._node_configs = [dict(config) for config in node_configs]

    def __call__(self, message: Message, context: Context) -> Message:
        node_config = self._node_configs[int(context.node_config["partition-id"])]
        own = Context(context.run_id, context.node_id, node_config, context.state, self._run_config)
        job = functools.partial(answer, self._client_app, message, own)
        limit = self._limit(message.metadata.message_type)
        worker = _worker()
        try:
            return worker.submit(job).result(timeout=limit)
        except FutureTimeoutError:
            # The thread cannot be stopped; the actor's next client gets a fresh one.
            worker.stop(wait=False)
            _worker.cache_clear()
            return Message(Error(CLIENT_TIMED_OUT, f"no reply within {limit:g} s"), reply_to=message)

    def _limit(self, message_type: str) -> float:
        config = RunConfig.model_fields
        phase = "deadline" if message_type in (protocol.TRAIN, protocol.EVALUATE) else "exchange_deadline"
        return float(self._run_config.get(phase.replace("_", "-"), config[phase].default))


@lru_cache(maxsize=1)
def _worker() -> Worker:
    """Return this process's worker, started when it is first needed."""
    return Worker()
