"""The clients of a run and one exchange with them: deadlines, failures by name, replies in domain order."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedhess.base.errors import DivergedError, FederationError, StrategyError
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.protocol import Part
from fedhess.federation.server.discovery import Client, discover, draw_clients
from fedhess.federation.validation import NotFiniteError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """One client that did not complete one phase of a round, and why.

    ``by_strategy`` where the strategy raised, ``diverged`` where it sent values that are not finite.
    """

    round: int
    phase: str
    client: str
    reason: str
    by_strategy: bool = False
    diverged: bool = False


def list_failures(failures: Iterable[Failure]) -> list[str]:
    """Write failures for people, a line for all clients that have the same reason."""
    clients: dict[tuple[int, str, str], list[str]] = {}
    for failure in failures:
        clients.setdefault((failure.round, failure.phase, failure.reason), []).append(failure.client)
    return [
        f"round {number}, {phase}, client{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}: {reason}"
        for (number, phase, reason), names in clients.items()
    ]


@dataclass(frozen=True)
class ModelPayload:
    """An encoded model and the id by which a client that still holds it knows it."""

    model_id: str
    arrays: ArrayRecord


@dataclass
class Traffic:
    """Bytes of arrays exchanged with one client since the last report."""

    down: int = 0
    up: int = 0


@dataclass
class Federation:
    """The clients of one run.

    Args:
        grid: Flower's grid.
        sources: Names of the source domains, in domain order.
        targets: Names of the target domains, in domain order.
        source_clients_expected: Number of source clients; 0 for one a source domain.
        clients_per_round: Source clients that take part in a round; 0 means all of them.
        seed: Draws them.
        quorum: Source clients that every phase needs, at most those that take part; 0 means all of these.
        deadline: Seconds a train or evaluate phase may take.
        exchange_deadline: Seconds an exchange of statistics, or finding a client, may take.
        on_traceback: Called with the traceback of each error that a strategy raised on a client.
    """

    grid: Grid
    sources: Sequence[str]
    targets: Sequence[str]
    source_clients_expected: int = 0
    clients_per_round: int = 0
    seed: int = 0
    quorum: int = 0
    deadline: float = 3600.0
    exchange_deadline: float = 600.0
    on_traceback: Callable[[str], object] | None = None
    clients: list[Client] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    _holds: dict[int, str] = field(default_factory=dict)
    _forgetful: set[int] = field(default_factory=set)
    _reported: int = 0  # failures that are in rows
    _named: int = 0  # failures that a warning or an error has named

    @property
    def source_clients(self) -> list[Client]:
        """The source clients, in domain order."""
        return [client for client in self.clients if client.identity.role == SOURCE]

    def participants(self, server_round: int) -> list[Client]:
        """The source clients that take part in a round of training, in domain order."""
        return draw_clients(self.source_clients, self.clients_per_round, seed=self.seed, server_round=server_round)

    def discover(self) -> None:
        """Find the clients of the run: see :func:`fedhess.federation.server.discovery.discover`.

        Raises:
            FederationError: A client is missing, or two nodes contradict each other.
        """
        self.clients = discover(
            self.grid,
            sources=self.sources,
            targets=self.targets,
            deadline=self.exchange_deadline,
            clients=self.source_clients_expected,
        )

    def exchange(
        self,
        phase: str,
        clients: Iterable[Client],
        *,
        message_type: str,
        server_round: int,
        model: ModelPayload,
        parts: Callable[[Client], Mapping[str, Part]],
        read: Callable[[Client, RecordDict], T],
        deadline: float,
    ) -> Iterator[tuple[Client, T]]:
        """Send one message to each client and yield what ``read`` makes of the replies, in domain order.

        A client that refuses, fails, stays silent or sends what ``read`` rejects is recorded in :attr:`failures` by
        name and left out. Replies are consumed one at a time: with a lazy grid only one is in memory. The
        model is sent only to clients not known to hold it; one that lost it says so and is sent it again.

        Args:
            phase: Name of the phase, for messages.
            clients: Who is asked, in domain order.
            message_type: Flower message type.
            server_round: Number of the round.
            model: The model the message is about.
            parts: Gives the further records of a client's message.
            read: Turns a reply into a value; raises ``ValueError`` with the reason to reject it.
            deadline: Seconds to wait.

        Yields:
            Pairs of client and value.
        """
        asked = list(clients)
        request = _Request(phase, message_type, server_round, model, parts)
        for client, content in _in_order(asked, self._send(request, asked, deadline)):
            if content is None:
                continue
            try:
                if _model_is_missing(content):
                    raise ValueError("it says that it lost the model although it was just sent")
                value = read(client, content)
            except ValueError as error:
                self.fail(server_round, phase, client.label, str(error), diverged=isinstance(error, NotFiniteError))
                continue
            yield client, value

    def require_quorum(self, phase: str, server_round: int, survivors: Sequence[Client], *, asked: int) -> None:
        """Check that enough source clients completed a phase, and name those that did not.

        Args:
            phase: Name of the phase.
            server_round: Number of the round.
            survivors: Who completed it.
            asked: How many take part: no more than these can be needed.

        Raises:
            FederationError: Fewer than the quorum did; the message lists the failures of the round.
            StrategyError: The same, where it was the strategy that raised on every client that failed.
            DivergedError: The same, where every client that failed sent values that are not finite.
        """
        needed = min(self.quorum or asked, asked)
        fresh, self._named = self.failures[self._named :], len(self.failures)
        if len(survivors) >= needed and survivors:
            for line in list_failures(fresh):
                logger.warning("%s", line)
            return
        of_round = [failure for failure in self.failures if failure.round == server_round]
        kind: type[Exception] = FederationError
        if of_round and all(failure.by_strategy for failure in of_round):
            kind = StrategyError
        elif of_round and all(failure.diverged for failure in of_round):
            kind = DivergedError
        raise kind(
            f"round {server_round}: {len(survivors)} of {asked} source clients completed phase "
            f"{phase!r}, {needed} are needed (--quorum).\n  " + "\n  ".join(list_failures(of_round))
        )

    def fail(
        self,
        server_round: int,
        phase: str,
        client: str,
        reason: str,
        *,
        by_strategy: bool = False,
        diverged: bool = False,
    ) -> None:
        """Record that a client dropped out of a phase; :meth:`require_quorum` names it when the phase has ended."""
        self.failures.append(Failure(server_round, phase, client, reason, by_strategy, diverged))

    def take_failures(self) -> list[Failure]:
        """Return the failures since the last call."""
        fresh = self.failures[self._reported :]
        self._reported = len(self.failures)
        return fresh

    def unreported(self) -> dict[str, Any]:
        """Return the failures and the traffic since the last report, for a checkpoint; JSON."""
        failures = [asdict(failure) for failure in self.failures[self._reported :]]
        return {"failures": failures, "traffic": {label: asdict(moved) for label, moved in self.traffic.items()}}

    def restore_unreported(self, recorded: Mapping[str, Any]) -> None:
        """Go on from :meth:`unreported` of the process before."""
        self.failures += [Failure(**failure) for failure in recorded.get("failures", ())]
        self._named = len(self.failures)
        self.traffic = {label: Traffic(**moved) for label, moved in recorded.get("traffic", {}).items()}

    def take_traffic(self) -> dict[str, Traffic]:
        """Return the traffic by client since the last call, and begin anew."""
        traffic, self.traffic = self.traffic, {}
        return traffic

    def _send(
        self, request: "_Request", clients: Sequence[Client], deadline: float
    ) -> Iterator[tuple[Client, RecordDict | None]]:
        """Send a request; yield each client once, with its reply or None, as the replies come."""
        # Where clients run one after the other, messages that are not their turn yet would only take memory.
        at_once = getattr(self.grid, "clients_at_once", len(clients)) or 1
        for start in range(0, len(clients), at_once):
            lost: list[Client] = []
            for client, content in self._round_trip(request, clients[start : start + at_once], deadline):
                if content is not None and _model_is_missing(content) and client.node_id in self._holds:
                    del self._holds[client.node_id]
                    self._forgetful.add(client.node_id)
                    lost.append(client)
                else:
                    yield client, content
            if lost:
                yield from self._round_trip(request, lost, deadline)

    def _round_trip(
        self, request: "_Request", clients: Sequence[Client], deadline: float
    ) -> Iterator[tuple[Client, RecordDict | None]]:
        messages = [self._message(request, client) for client in clients]
        replies = self.grid.send_and_receive(messages, timeout=deadline)
        by_id = {message.metadata.message_id: client for message, client in zip(messages, clients, strict=True)}
        for reply in replies:
            # By message id: when a node is gone, the SuperLink answers in its place, under its own node id.
            client = by_id.pop(reply.metadata.reply_to_message_id, None)
            if client is None:
                logger.warning("round %d, %s: dropped an unexpected reply", request.server_round, request.phase)
            elif reply.has_error():
                self._holds.pop(client.node_id, None)
                self._fail_by(reply.error, request, client)
                yield client, None
            else:
                self.count(client, up=protocol.array_bytes(reply.content))
                yield client, reply.content
        for client in by_id.values():
            self._holds.pop(client.node_id, None)
            self.fail(request.server_round, request.phase, client.label, f"no reply within {deadline:g} s")
            yield client, None

    def _fail_by(self, error: Error, request: "_Request", client: Client) -> None:
        """Record the failure that a client replied with, and hand on the traceback of a strategy's error."""
        reason, by_strategy = error.reason or "no reason given", error.code == protocol.STRATEGY_RAISED
        if by_strategy:
            reason, heading, trace = reason.partition(protocol.TRACEBACK)
            reason = reason.rstrip()
            if self.on_traceback is not None:
                where = f"round {request.server_round}, {request.phase}, client {client.label}"
                self.on_traceback(f"{where}\n{heading}{trace}")
        else:
            reason = f"error {error.code}: {reason}"
        self.fail(request.server_round, request.phase, client.label, reason, by_strategy=by_strategy)

    def _message(self, request: "_Request", client: Client) -> Message:
        content = RecordDict(dict(request.parts(client)))
        config = ConfigRecord({protocol.ROUND: request.server_round, protocol.MODEL_ID: request.model.model_id})
        config.update(content.config_records.get(protocol.CONFIG, ConfigRecord()))
        content[protocol.CONFIG] = config
        if self._holds.get(client.node_id) != request.model.model_id or client.node_id in self._forgetful:
            content[protocol.MODEL] = request.model.arrays
            self._holds[client.node_id] = request.model.model_id
        self.count(client, down=protocol.array_bytes(content))
        return Message(
            content,
            dst_node_id=client.node_id,
            message_type=request.message_type,
            group_id=str(request.server_round),
        )

    def count(self, client: Client, *, down: int = 0, up: int = 0) -> None:
        """Add bytes to the traffic of a client."""
        traffic = self.traffic.setdefault(client.label, Traffic())
        traffic.down += down
        traffic.up += up


@dataclass(frozen=True)
class _Request:
    phase: str
    message_type: str
    server_round: int
    model: ModelPayload
    parts: Callable[[Client], Mapping[str, Part]]


def _model_is_missing(content: RecordDict) -> bool:
    return bool(content.config_records.get(protocol.CONFIG, ConfigRecord()).get(protocol.MODEL_MISSING, False))


def _in_order(
    clients: Sequence[Client], replies: Iterable[tuple[Client, RecordDict | None]]
) -> Iterator[tuple[Client, RecordDict | None]]:
    """Yield the replies in the order of ``clients``, holding back those that come before their turn."""
    waiting = list(clients)
    early: dict[Client, RecordDict | None] = {}
    for client, content in replies:
        early[client] = content
        while waiting and waiting[0] in early:
            turn = waiting.pop(0)
            yield turn, early.pop(turn)
