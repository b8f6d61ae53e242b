"""The grid of a simulation in which more clients than fit at once take turns: a deadline counts for each of them."""

import math
import threading
import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from fedhess.federation.flower_compat import ForwardingGrid

CLIENT_TIMED_OUT = 1003  # error code of a reply that stands for none; Flower's own stop well below 1000
POLL_SECONDS = 0.02
GRACE_SECONDS = 60.0  # for actors that start and messages that wait, beside the clients' own time


class RunStoppedError(Exception):
    """The simulation behind a waiting server has ended."""


class PatientGrid(ForwardingGrid):
    """The simulation's grid, whose deadlines count for each client, since more clients than actors take turns.

    Args:
        grid: Flower's grid.
        stop: Set when the simulation has ended.
        actors: Number of clients that run side by side.

    Attributes:
        clients_at_once: How many messages of a phase are sent before the first replies are awaited: a few for each
            actor, so that it never waits and memory does not grow with the number of clients.
        nodes_are_fixed: No node comes later.
    """

    nodes_are_fixed = True

    def __init__(self, grid: Grid, stop: threading.Event, *, actors: int) -> None:
        super().__init__(grid)
        self._stop = stop
        self._actors = actors
        self.clients_at_once = 4 * actors

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies, but for those that stand for none."""
        return [reply for reply in self._grid.pull_messages(message_ids) if not _stands_for_none(reply)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push messages and lazily yield their replies as they come.

        Args:
            messages: Instruction messages.
            timeout: Seconds for each client, which the actors enforce; a client that takes longer is left out.
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
