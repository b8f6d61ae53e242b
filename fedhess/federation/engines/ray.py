"""Run an unchanged ServerApp and ClientApp on Flower's Ray simulation, on this machine or on a cluster.

Clients run in parallel in Ray actors. The guarantees of the in-process engine hold here too: the run config and the
node configs reach the clients, a client's deadline counts from when it starts, an exception of a client is a named
failure, and the final weights are bitwise equal at equal torch thread counts. Any actor may serve any client, so a
client's process may not hold the model: the model is then sent again.
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
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import lru_cache
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhess.base.errors import UsageError
from fedhess.federation import protocol
from fedhess.federation.engines.worker import CLIENT_THREAD, Worker, answer
from fedhess.federation.flower_compat import SUPERLINK_NODE_ID, ForwardingGrid, run_flower_simulation, run_identity
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.02
GRACE_SECONDS = 60.0  # for starting actors and waiting messages, on top of the clients' own time
CLIENT_TIMED_OUT = 1003  # error code of a reply that stands for no reply; Flower's own stop well below 1000
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


class RunStoppedError(Exception):
    """The simulation behind a waiting server has ended."""


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
    """Run a federation to its end on Ray, as :func:`run_in_process` does in this process."""
    connect(cpus_per_client * len(node_configs), address)
    actors = room(cpus_per_client, gpus_per_client, of="a client", lower="--cpus-per-client or --gpus-per-client")
    stop = threading.Event()
    wrapped = ServerApp()

    @wrapped.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(_PatientGrid(grid, stop, actors=actors), context)

    run_id = 1
    before = set(threading.enumerate())
    try:
        with run_identity(run_id):
            run_flower_simulation(
                wrapped,
                _Client(client_app, run_config, node_configs),  # type: ignore[arg-type]  # called like a ClientApp
                context=Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)),
                nodes=len(node_configs),
                client_resources={"num_cpus": cpus_per_client, "num_gpus": gpus_per_client},
            )
    finally:
        stop.set()  # Ctrl-C, or a crash of the simulation: nobody will answer the server any more
        for thread in set(threading.enumerate()) - before:
            if not thread.daemon:  # it waits for an actor that is gone, and would block the exit forever
                thread.name = CLIENT_THREAD


def require_ray(option: str, *, instead: str) -> None:
    """Raise a UsageError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"{option}: Ray is not installed; pip install 'fedhess[ray]', or {instead}")


def connect(most_cpus: int, address: str | None) -> None:
    """Attach to a Ray cluster, or start one here with no more cores than the run can use."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")  # an extra, and slow to import
    if ray.is_initialized():
        return
    # Actors do not see what this process added to its path, such as the folder of a user's strategy.
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    starts = address in (None, "local")
    own = {"num_cpus": min(os.cpu_count() or 1, most_cpus), "include_dashboard": False} if starts else {}
    try:
        _await_answer(address or "local")
        ray.init(
            address=address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            logging_level=logging.ERROR,
            log_to_driver=False,
            **own,
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--ray-address: no Ray cluster answers at {address or 'this machine'} ({error}); start one with "
            "`ray start --head`, or leave the option out"
        ) from error


def room(cpus: int, gpus: float, *, of: str, lower: str) -> int:
    """Count how many workers of so many CPUs and GPUs each the connected cluster can run in parallel."""
    ray: Any = importlib.import_module("ray")
    count = sum(_room(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])
    if count == 0:
        found = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        ray.shutdown()
        raise UsageError(
            f"no machine of the Ray cluster has room for {of} of {cpus} CPUs and {gpus:g} GPUs: it has {found} in "
            f"all; lower {lower}"
        )
    return count


def _await_answer(address: str) -> None:
    """Connect to an address with a port and close again; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    room = int(resources.get("CPU", 0) / cpus)
    return min(room, int(resources.get("GPU", 0) / gpus)) if gpus else room


class _PatientGrid(ForwardingGrid):
    """The simulation's grid with a deadline per client, since clients take turns if they outnumber the actors.

    ``clients_at_once`` messages are sent before the first replies are awaited: a few per actor, so that no actor waits
    and memory does not grow with the number of clients.
    """

    nodes_are_fixed = True

    def __init__(self, grid: Grid, stop: threading.Event, *, actors: int) -> None:
        super().__init__(grid)
        self._stop = stop
        self._actors = actors
        self.clients_at_once = 4 * actors

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies, except those that stand for no reply."""
        return [reply for reply in self._grid.pull_messages(message_ids) if not _stands_for_none(reply)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push messages and lazily yield their replies as they come.

        ``timeout`` applies to each client and is enforced by the actors; a client that takes longer is left out.
        """
        waiting = set(self._grid.push_messages(list(messages)))
        turns = math.ceil(len(waiting) / self._actors)
        end = math.inf if timeout is None else time.monotonic() + turns * timeout + GRACE_SECONDS
        return self._replies(waiting, end)

    def _replies(self, waiting: set[str], end: float) -> Iterator[Message]:
        while waiting and time.monotonic() < end:
            for reply in self._grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                if not _stands_for_none(reply):
                    yield reply
            if waiting and self._stop.wait(POLL_SECONDS):
                raise RunStoppedError("the simulation has ended")


def _stands_for_none(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == CLIENT_TIMED_OUT


class _Client:
    """Calls the ClientApp in an actor, with the run's configs (by partition id) and within the client's deadline."""

    def __init__(
        self, client_app: ClientApp, run_config: Mapping[str, Scalar], node_configs: Sequence[Mapping[str, Scalar]]
    ) -> None:
        self._client_app = client_app
        self._run_config = dict(run_config)  # Flower's simulation passes none to a ClientApp object
        self._node_configs = [dict(config) for config in node_configs]

    def __call__(self, message: Message, context: Context) -> Message:
        node_config = self._node_configs[int(context.node_config["partition-id"])]
        own = Context(context.run_id, context.node_id, node_config, context.state, self._run_config)
        whole = message.metadata.message_type in (protocol.TRAIN, protocol.EVALUATE)
        phase = "deadline" if whole else "exchange_deadline"
        limit = float(self._run_config.get(phase.replace("_", "-"), RunConfig.model_fields[phase].default))
        worker = _worker()
        try:
            return worker.submit(functools.partial(answer, self._client_app, message, own)).result(timeout=limit)
        except FutureTimeoutError:
            # The thread cannot be stopped; the actor's next client gets a fresh one.
            worker.stop(wait=False)
            _worker.cache_clear()
            return Message(Error(CLIENT_TIMED_OUT, f"no reply within {limit:g} s"), reply_to=message)


@lru_cache(maxsize=1)
def _worker() -> Worker:
    """Return this process's worker, started when it is first needed."""
    return Worker()
