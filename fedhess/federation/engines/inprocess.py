"""Run an unchanged ServerApp and ClientApp in this process, behind Flower's ``Grid`` interface.

Each simulated node has its own ``Context``; records are copied on the way in and on the way out, so that neither side
can modify the other's (array bytes are immutable and shared). A client runs when its reply is pulled, one client at
a time, so the server can add up replies while it holds a single one.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhess.federation.engines.worker import Worker, answer
from fedhess.federation.flower_compat import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    NodeInfo,
    Run,
    copy_array_record,
    empty_run,
    run_identity,
    set_message_id,
)
from fedhess.settings.assignments import Scalar

POLL_SECONDS = 0.5  # longest a single pull waits for a running client before it returns without its reply
ALLOCATOR_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
MALLOPT = ((-3, 2**30), (-1, 2**31 - 1))  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), in bytes
TRIMMED_FROM = 2**31  # bytes; a smaller process keeps its freed memory


@dataclass
class _Node:
    context: Context
    running: "Future[Message] | None" = None

    @property
    def busy(self) -> bool:
        return self.running is not None and not self.running.done()


class InProcessGrid(Grid):
    """A Grid whose nodes live in this process; ``node_configs`` are by node id."""

    clients_at_once = 32  # clients to send to at once: they run in turn, and waiting messages take memory
    nodes_are_fixed = True  # no node joins later
    keeps_memory = False  # what `keep_freed_memory` returned

    def __init__(
        self,
        client_app: ClientApp,
        *,
        node_configs: Mapping[int, Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
        run_id: int = 1,
    ) -> None:
        self._client_app = client_app
        self._run = empty_run(run_id)
        self._nodes = {
            node_id: _Node(Context(run_id, node_id, dict(config), RecordDict(), dict(run_config)))
            for node_id, config in node_configs.items()
        }
        self._pending: dict[str, Message] = {}
        self._running: dict[str, tuple[_Node, Future[Message]]] = {}
        self._pushed = 0
        self._worker = Worker()
        self._newest: Future[Message] | None = None  # the worker's newest job
        self._resident = 0  # size in bytes after freed memory was last returned

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works for."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make an instruction message from the server to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """List the node ids."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the nodes."""
        return [NodeInfo(node_id=node_id) for node_id in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages, each to be run when its reply is pulled; return their ids, in order."""
        if self.keeps_memory:
            self._resident = return_freed_memory(self._resident)
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Run the clients of these messages, one after the other, and yield their replies as they end.

        A client that has not finished within half a second continues in the background and yields nothing this time:
        pull again. No other client starts meanwhile.
        """
        return self._replies(message_ids, POLL_SECONDS, last_chance=False)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push messages and lazily yield their replies in order.

        ``timeout`` applies to each client, since clients run one after the other here and real clients run in parallel;
        a client that takes longer is left out.
        """
        return self._replies(self.push_messages(list(messages)), timeout, last_chance=True)

    def close(self) -> None:
        """Stop the worker thread and wait for its end, unless a client hangs: a hung thread ends with the process."""
        self._worker.stop(wait=not any(node.busy for node in self._nodes.values()))

    def _push(self, message: Message) -> str:
        self._pushed += 1
        message_id = f"{self._run.run_id}-{self._pushed}"
        set_message_id(message, message_id)
        self._pending[message_id] = Message(metadata=message.metadata, content=_isolated(message.content))  # type: ignore[call-overload]
        return message_id

    def _replies(self, message_ids: Iterable[str], wait: float | None, *, last_chance: bool) -> Iterator[Message]:
        for message_id in message_ids:
            reply = self._reply(message_id, wait=wait)
            if reply is not None:
                yield reply
            elif last_chance:
                self._running.pop(message_id, None)  # nobody reads a late reply
            elif message_id in self._running:
                return

    def _reply(self, message_id: str, wait: float | None) -> Message | None:
        if message_id in self._pending:
            message = self._pending.pop(message_id)
            node = self._nodes.get(message.metadata.dst_node_id)
            if node is None or node.busy:
                why = "no such node" if node is None else "still busy with an earlier message"
                return _numbered(Message(Error(ErrorCode.NODE_UNAVAILABLE, why), reply_to=message))
            if self._newest is not None and not self._newest.done():
                # A hung client's thread cannot be stopped and keeps its node busy; this node starts on a fresh worker.
                self._worker.stop(wait=False)
                self._worker = Worker()
            node.running = self._newest = self._worker.submit(functools.partial(self._execute, message, node.context))
            self._running[message_id] = node, node.running
        if message_id not in self._running:
            return None
        node, future = self._running[message_id]
        try:
            reply = future.result(timeout=wait)
        except FutureTimeoutError:
            return None
        # These references would keep the reply, and with it a model, alive until the next message.
        del self._running[message_id]
        if node.running is future:
            node.running = None
        if self._newest is future:
            self._newest = None
        return reply

    def _execute(self, message: Message, context: Context) -> Message:
        reply = answer(self._client_app, message, context)
        if reply.has_content():
            reply = Message(metadata=reply.metadata, content=_isolated(reply.content))  # type: ignore[call-overload]
        return _numbered(reply)


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    run_config: Mapping[str, Scalar],
    node_configs: Sequence[Mapping[str, Scalar]],
    node_ids: Sequence[int] | None = None,
) -> None:
    """Run a federation to its end in this process, which keeps the memory that it frees from then on.

    ``node_configs`` and ``node_ids`` have one entry per client; nothing may depend on the ids. Exceptions of the
    ServerApp are raised.
    """
    ids = range(1001, 1001 + len(node_configs)) if node_ids is None else node_ids
    run_id = 1
    grid = InProcessGrid(client_app, node_configs=dict(zip(ids, node_configs, strict=True)), run_config=run_config)
    grid.keeps_memory = keep_freed_memory()
    with run_identity(run_id):
        try:
            server_app(grid, Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))
        finally:
            grid.close()


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks below 1 GiB instead of returning them to the kernel; return whether it does.

    By default glibc maps each block of more than 32 MiB afresh and unmaps it when it is freed, so that the kernel has
    to clear every page of every activation in every step. This takes a fifth of a full-batch step on ColoredMNIST
    (25,000 examples, activations of 39 MB). Keeping blocks takes more memory, see `return_freed_memory`. Nothing is
    done with another C library, or where the environment configures glibc's allocator.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) == 1 for option in MALLOPT)


def return_freed_memory(last: int) -> int:
    """Return freed blocks to the kernel if the process has doubled since it last did so; return its size at that time.

    Before version 2.38 glibc seldom reuses freed blocks that were aligned, as all of PyTorch's are (glibc bug 14581).
    If they are kept, a run with full batches of 25,000 examples grows by 100 MB a round.
    """

    def resident() -> int:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if resident() <= max(2 * last, TRIMMED_FROM):
        return last
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def _numbered(reply: Message) -> Message:
    set_message_id(reply, f"reply-to-{reply.metadata.reply_to_message_id}")
    return reply


def _isolated(content: RecordDict) -> RecordDict:
    copy = RecordDict()
    for name, record in content.items():
        copy[name] = copy_array_record(record) if isinstance(record, ArrayRecord) else deepcopy(record)
    return copy
