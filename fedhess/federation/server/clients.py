"""The clients of a run and one exchange with them: deadlines, failures by name, replies in domain order."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedhess.alignment.privacy import releases_per_round
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.protocol import Part
from fedhess.federation.server.discovery import Client, add_nonce, discover, draw_clients, returns_nonce
from fedhess.federation.server.ledger import NOT_AWAITED, Failure, Ledger
from fedhess.federation.server.norm_bound import NormBound, Norms
from fedhess.federation.tensors import NotFiniteError
from fedhess.settings.run_config import RunConfig

logger = logging.getLogger(__name__)

REPLY_SECONDS = 0.5  # between two polls for replies
MOST_LINES = 200  # of a traceback

T = TypeVar("T")


@dataclass(frozen=True)
class ModelPayload:
    """An encoded model and the id by which a client that still holds it knows it."""

    model_id: str
    arrays: ArrayRecord


@dataclass(frozen=True)
class Request(Generic[T]):
    """One message to each of several clients, and how their replies are read.

    ``records`` returns the names of the records that a client's reply may have, ``parts`` the further records of its
    message; ``read`` raises ``ValueError`` to reject a reply. Once more than ``spare`` clients have refused or failed,
    the others are not waited for.
    """

    phase: str
    message_type: str
    server_round: int
    model: ModelPayload
    deadline: float  # seconds
    records: Callable[[Client], Iterable[str]]
    read: Callable[[Client, RecordDict], T]
    parts: Callable[[Client], Mapping[str, Part]] = lambda _: {}
    spare: float = math.inf


@dataclass
class Federation:
    """The clients of one run."""

    grid: Grid
    config: RunConfig
    on_traceback: Callable[[str], object] | None = None  # called with the traceback of each strategy error on a client
    clients: list[Client] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    bound: NormBound = field(init=False)
    _holds: dict[int, list[str]] = field(default_factory=dict)  # node -> ids of the models that it holds
    _forgetful: set[int] = field(default_factory=set)  # nodes that lost a model once: they get it every time

    def __post_init__(self) -> None:
        self.bound = NormBound(self.config.norm_bound)

    @property
    def source_clients(self) -> list[Client]:
        """The source clients, in domain order."""
        return [client for client in self.clients if client.identity.role == SOURCE]

    def participants(self, server_round: int) -> list[Client]:
        """The source clients that take part in a round of training, in domain order."""
        config = self.config
        return draw_clients(self.source_clients, config.clients_per_round, seed=config.seed, server_round=server_round)

    def discover(self, nodes: Mapping[str, int]) -> None:
        """Find the clients of the run: see :func:`fedhess.federation.server.discovery.discover`."""
        self.clients = discover(self.grid, self.config, nodes)
        for client in self.clients:
            content = RecordDict({protocol.IDENTITY: client.identity.to_record()})
            self.ledger.count(client.label, protocol.IDENTIFY, content, way="up")

    def exchange(self, request: Request[T], clients: Iterable[Client]) -> Iterator[tuple[Client, T]]:
        """Send one message to each client and yield what ``request.read`` makes of the replies, in domain order.

        A client that refuses, fails, stays silent or sends what ``read`` rejects is recorded in the ledger by name and
        left out. Replies are consumed one at a time: with a lazy grid only one is in memory. The model is sent only to
        clients not known to hold it; a client that lost it replies so, and is sent it again.
        """
        asked = list(clients)
        for client, reply in _in_order(asked, self._send(request, asked)):
            if reply is None:
                continue
            value = self.accept(request, client, reply)
            if value is not None:
                yield client, value

    def screen(
        self,
        phase: str,
        server_round: int,
        replies: Iterable[tuple[Client, T]],
        norms: Callable[[Client, T], Norms],
        *,
        asked: int,
    ) -> Iterator[tuple[Client, T]]:
        """Yield the replies within the bound on norms; a client that exceeds it is recorded and left out."""

        def reject(client: Client, reason: str) -> None:
            self.ledger.failures.append(Failure(server_round, phase, client.label, reason))

        return self.bound.screen(replies, norms, reject, asked=asked)

    def accept(self, request: Request[T], client: Client, reply: Message) -> T | None:
        """Read a reply, and count it; return None and record the failure where it is rejected.

        Tables list the names of the records that are counted, so a reply with other records is rejected.
        """
        try:
            if _model_is_missing(reply):
                raise ValueError("it lost the model although it was just sent")
            if further := set(reply.content) - set(request.records(client)):
                raise ValueError(f"expected no further records in the reply, got {sorted(further)}")
            value = request.read(client, reply.content)
        except ValueError as error:
            self._fail(request, client, str(error), diverged=isinstance(error, NotFiniteError))
            return None
        self.ledger.count(client.label, request.message_type, reply.content, way="up")
        return value

    def round_trip(
        self, request: Request[T], messages: Sequence[tuple[Client, Message]], grid: Grid
    ) -> Iterator[tuple[Client, Message | None]]:
        """Send messages; yield each one's client with its reply, or None where it failed, as the replies come."""
        nonces = [_marked(message, client) for client, message in messages]
        for addressee, message in messages:
            self.ledger.count(addressee.label, request.message_type, message.content, way="down")
        failed = 0
        sent = [message for _, message in messages]
        replies = _replies(grid, sent, request.deadline, goes_on=lambda: failed <= request.spare)
        ids = [message.metadata.message_id for message in sent]
        asked = {id_: (client, nonce) for id_, (client, _), nonce in zip(ids, messages, nonces, strict=True)}
        for reply in replies:
            # By message id: when a node is gone, the SuperLink answers in its place, under its own node id.
            client, nonce = asked.pop(reply.metadata.reply_to_message_id, (None, ""))
            if client is None:
                logger.warning("round %d, %s: dropped an unexpected reply", request.server_round, request.phase)
                continue
            if not reply.has_error() and returns_nonce(reply, nonce):
                yield client, reply
                continue
            failed += 1
            self._holds.pop(client.node_id, None)
            if reply.has_error():
                self._fail_by(reply.error, request, client)
            else:
                self._fail(
                    request, client, "the reply in its name does not return the message's nonce: another sent it"
                )
            yield client, None
        for client, _ in asked.values():
            self._holds.pop(client.node_id, None)
            late = f"no reply within {request.deadline:g} s"
            self._fail(request, client, late if failed <= request.spare else NOT_AWAITED)
            yield client, None

    def require_quorum(self, phase: str, server_round: int, completed: Sequence[Client], *, asked: int) -> None:
        """Check that enough source clients completed a phase: see :meth:`Ledger.require_quorum`."""
        sources = {client.label for client in self.source_clients}
        quorum = self.config.quorum
        self.ledger.require_quorum(phase, server_round, len(completed), asked=asked, quorum=quorum, of=sources)

    def spare(self, participants: Sequence[Client], *, asked: int) -> int:
        """Return how many of a round's participants may fail before fewer than the quorum are left."""
        return len(participants) - min(self.config.quorum or asked, asked)

    def _send(self, request: Request[T], clients: Sequence[Client]) -> Iterator[tuple[Client, Message | None]]:
        """Send a request; yield each client once, with its reply or None, as the replies come."""
        # Where clients run one after the other, messages sent before their turn would only take memory.
        at_once = getattr(self.grid, "clients_at_once", len(clients)) or 1
        spent = [client for client in clients if not self._may_ask(request, client)]
        yield from ((client, None) for client in spent)
        clients = [client for client in clients if client not in spent]
        for start in range(0, len(clients), at_once):
            lost: list[Client] = []
            messages = [(client, self._message(request, client)) for client in clients[start : start + at_once]]
            for client, reply in self.round_trip(request, messages, self.grid):
                if reply is not None and _model_is_missing(reply) and client.node_id in self._holds:
                    del self._holds[client.node_id]
                    self._forgetful.add(client.node_id)
                    lost.append(client)
                else:
                    yield client, reply
            if lost:
                again = [(client, self._message(request, client)) for client in lost]
                yield from self.round_trip(request, again, self.grid)

    def _may_ask(self, request: Request[T], client: Client) -> bool:
        """Whether a client of a private run has privacy left for a request; count the request, or record a failure.

        A request counts whether the client answers or not: an answer that came too late has left it all the same.
        """
        config, label = self.config, client.label
        if not config.is_private or client.identity.role != SOURCE:
            return True
        asked = protocol.releases_in(RecordDict(dict(request.parts(client))), request.message_type)
        released = self.ledger.released.get(label, 0) + asked
        planned = request.server_round * releases_per_round(config)
        if released > planned:
            reason = f"not asked: --dp-epsilon has noise for {planned} replies by now, this would make it {released}"
            self._fail(request, client, reason)
            return False
        if asked:
            self.ledger.released[label] = released
        return True

    def _message(self, request: Request[T], client: Client) -> Message:
        content = RecordDict(dict(request.parts(client)))
        config = ConfigRecord({protocol.ROUND: request.server_round, protocol.MODEL_ID: request.model.model_id})
        config.update(content.config_records.get(protocol.CONFIG, ConfigRecord()))
        content[protocol.CONFIG] = config
        held, now = self._holds.setdefault(client.node_id, []), request.model.model_id
        if now not in held or client.node_id in self._forgetful:
            content[protocol.MODEL] = request.model.arrays
        held[:] = [*(each for each in held if each != now), now][-protocol.MODELS_HELD :]
        return Message(
            content, dst_node_id=client.node_id, message_type=request.message_type, group_id=str(request.server_round)
        )

    def _fail_by(self, error: Error, request: Request[T], client: Client) -> None:
        """Record the failure that a client replied with, and pass on the traceback of a strategy's error."""
        reason = error.reason or "no reason given"
        if error.code != protocol.STRATEGY_RAISED:
            self._fail(request, client, f"error {error.code}: {reason}")
            return
        reason, heading, trace = reason.partition(protocol.TRACEBACK)
        if self.on_traceback is not None:
            where = f"round {request.server_round}, {request.phase}, client {client.label}"
            lines = f"{heading}{trace}".splitlines()[-MOST_LINES:]
            self.on_traceback("\n".join([where, *(f"| {protocol.printable(line)}" for line in lines), ""]))
        self._fail(request, client, reason.rstrip(), by_strategy=True)

    def _fail(self, request: Request[T], client: Client, reason: str, **kind: bool) -> None:
        shown = protocol.printable(reason)
        self.ledger.failures.append(Failure(request.server_round, request.phase, client.label, shown, **kind))


def _marked(message: Message, client: Client) -> str:
    """Put a nonce, and the digest of the data that the client began with, into a message; return the nonce."""
    nonce = add_nonce(message)
    message.content.config_records[protocol.CONFIG][protocol.DATA_DIGEST] = client.identity.data_digest
    return nonce


def _replies(grid: Grid, messages: list[Message], deadline: float, goes_on: Callable[[], bool]) -> Iterable[Message]:
    """Send messages; return the replies, which may come until the deadline.

    Flower's own grids would poll every three seconds and return all replies once the last has come. They are polled
    more often here, and only as long as ``goes_on`` returns True.
    """
    if not type(grid).__module__.startswith("flwr."):
        return grid.send_and_receive(messages, timeout=deadline)
    sent = [message_id for message_id in grid.push_messages(messages) if message_id]  # no id if not sent
    return _as_they_come(grid, sent, time.monotonic() + deadline, goes_on)


def _as_they_come(grid: Grid, waiting: list[str], end: float, goes_on: Callable[[], bool]) -> Iterator[Message]:
    while waiting and goes_on() and time.monotonic() < end:
        for reply in grid.pull_messages(waiting):
            waiting = [message_id for message_id in waiting if message_id != reply.metadata.reply_to_message_id]
            yield reply
        if waiting:
            time.sleep(REPLY_SECONDS)


def _model_is_missing(reply: Message) -> bool:
    config = reply.content.config_records.get(protocol.CONFIG, ConfigRecord())
    return bool(config.get(protocol.MODEL_MISSING, False))


def _in_order(
    clients: Sequence[Client], replies: Iterable[tuple[Client, Message | None]]
) -> Iterator[tuple[Client, Message | None]]:
    """Yield the replies in the order of ``clients``, holding back those that come before their turn."""
    waiting = list(clients)
    early: dict[Client, Message | None] = {}
    for client, reply in replies:
        early[client] = reply
        while waiting and waiting[0] in early:
            turn = waiting.pop(0)
            yield turn, early.pop(turn)
