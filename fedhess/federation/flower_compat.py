"""Every private Flower name that fedhess uses, in one place: an upgrade of Flower is checked against this file.

Written against flwr 1.41. The public API (``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``) is imported where it
is needed; the names in this file are not public in that version.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import click
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "ForwardingGrid",
    "NodeInfo",
    "Run",
    "copy_array_record",
    "empty_run",
    "keeps_node_ids",
    "read_run_config",
    "run_flower_simulation",
    "run_identity",
    "set_message_id",
]


def empty_run(run_id: int) -> Run:
    """Make the ``Run`` that a Grid reports, with nothing but its id."""
    return Run.create_empty(run_id=run_id)


def keeps_node_ids(grid: Grid) -> bool:
    """Whether nodes keep their ids in the next run; a simulation draws new ids each time."""
    from flwr.superlink.grid import InMemoryGrid  # noqa: PLC0415 - a simulation in process does not need its imports

    return not (isinstance(grid, InMemoryGrid) or getattr(grid, "nodes_are_fixed", False))


def read_run_config(arguments: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Read arguments of ``flwr run --run-config`` as Flower does; later ones override earlier ones."""
    from flwr.common.config import parse_config_args  # noqa: PLC0415 - a simulation does not need its imports

    for text in arguments:
        rest = re.sub(r"""[^\s=]+=('[^']*'|"[^"]*"|[^\s'"]+)(?=\s|$)""", "", text).strip()
        if rest and not text.endswith(".toml"):
            raise ValueError(f"expected key=value, with texts in quotes and no blanks around =, got {rest!r}")
    try:
        read: dict[str, str | int | float | bool] = parse_config_args(list(arguments))
    except (click.ClickException, OSError) as error:
        raise ValueError(str(error)) from None
    return read


def copy_array_record(record: ArrayRecord) -> ArrayRecord:
    """Copy a record but share its arrays, whose bytes are immutable; the public setter would check each item again."""
    copy = ArrayRecord()
    copy.__dict__["_data"].update(record.__dict__["_data"])
    return copy


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's grids do when they push it: ``Metadata`` has no public setter."""
    message.metadata.__dict__["_message_id"] = message_id


@contextmanager
def run_identity(run_id: int) -> Iterator[None]:
    """Let this process build messages as the ServerApp of a run; outside a run, ``Message(...)`` raises."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = run_id, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def run_flower_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    context: Context,
    nodes: int,
    client_resources: Mapping[str, float],
) -> None:
    """Run the Flower simulation behind ``flwr run`` on a local connection, with objects instead of a bundle.

    The public ``run_simulation`` is deprecated and passes an empty run config to the ServerApp; this function passes an
    empty one to clients only. ``client_resources`` are ``num_cpus`` and ``num_gpus`` per client.
    """
    from flwr.simulation.run_simulation import _run_simulation  # noqa: PLC0415 - takes a second, and few runs need it
    from flwr.supercore.constant import NOOP_FEDERATION_ID  # noqa: PLC0415
    from flwr.supercore.telemetry import EventType  # noqa: PLC0415

    run = empty_run(context.run_id)
    run.primary_task_id = context.run_id
    run.federation_id = NOOP_FEDERATION_ID
    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        backend_config={"client_resources": dict(client_resources), "init_args": {}},
        server_app_context=context,
        run=run,
    )


class ForwardingGrid(Grid):
    """Forwards every call except ``send_and_receive`` to an underlying grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Set the run of the underlying grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message with the underlying grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """List the node ids."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies."""
        return self._grid.pull_messages(message_ids)
