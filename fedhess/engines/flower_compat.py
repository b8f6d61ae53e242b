"""Every private Flower name that fedhess uses, in one place: an upgrade of Flower is checked against this file.

Written against flwr 1.41. The public API (``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``) is imported where it
is needed; what is here has no public home in that version.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "NodeInfo",
    "Run",
    "copy_array_record",
    "empty_run",
    "run_identity",
    "set_message_id",
]


def empty_run(run_id: int) -> Run:
    """Make the ``Run`` that a Grid reports, with nothing but its id."""
    return Run.create_empty(run_id=run_id)


def copy_array_record(record: ArrayRecord) -> ArrayRecord:
    """Copy a record of arrays and share the arrays, whose bytes are immutable; Flower checks each item again."""
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
