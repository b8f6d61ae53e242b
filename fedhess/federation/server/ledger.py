"""What went wrong and what was sent in a run: failures and records by client, until a row reports them."""

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedhess.base.errors import DivergedError, FederationError, StrategyError
from fedhess.federation import protocol
from fedhess.federation.tensors import array_bytes

logger = logging.getLogger(__name__)

NOT_AWAITED = "not waited for: too few would be left"  # reason for clients that failed only because others had


@dataclass(frozen=True)
class Failure:
    """One client that did not complete one phase of a round, and why.

    ``by_strategy`` if the strategy raised, ``diverged`` if the client sent values that are not finite.
    """

    round: int
    phase: str
    client: str
    reason: str
    by_strategy: bool = False
    diverged: bool = False


@dataclass
class Traffic:
    """What was exchanged with one client: bytes of arrays, and every record but settings.

    ``sent`` has, by direction (``"down"``: to the client) and name (``"MESSAGE RECORD"``), how often the record was
    sent, its total bytes, and its shape.
    """

    down: int = 0
    up: int = 0
    sent: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


@dataclass
class Ledger:
    """Failures and traffic of a run."""

    failures: list[Failure] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)  # by client, since the last row
    released: dict[str, int] = field(default_factory=dict)  # by private client, answers that depend on its examples
    _reported: int = 0  # failures that are in rows
    _named: int = 0  # failures that a warning or an error has named

    def count(self, client: str, message_type: str, content: RecordDict, *, way: Literal["down", "up"]) -> None:
        """Add the content of a message to a client, or of its reply, to the client's traffic."""
        traffic = self.traffic.setdefault(client, Traffic())
        setattr(traffic, way, getattr(traffic, way) + array_bytes(content))
        sent = traffic.sent.setdefault(way, {})
        for name, size, shape in _records(content):
            times, total, _ = sent.get(f"{message_type} {name}", (0, 0, ""))
            sent[f"{message_type} {name}"] = [times + 1, total + size, shape]

    def require_quorum(
        self, phase: str, server_round: int, completed: int, *, asked: int, quorum: int, of: Container[str]
    ) -> None:
        """Check that at least ``quorum`` (0: all) of the clients asked completed a phase; log new failures.

        Only failures of the clients in ``of`` count, so that a target's failure is not held against the sources.

        Raises:
            FederationError: Fewer than the quorum did; the message lists the failures of the round.
            StrategyError: The same, if the strategy raised on every client that failed.
            DivergedError: The same, if every client that failed sent values that are not finite. Also, whatever the
                quorum, if at least half of the clients that answered did: the cause is then not the clients.
        """
        needed = min(quorum or asked, asked)
        of_round = [failure for failure in self.failures if failure.round == server_round]
        judged = [failure for failure in of_round if failure.client in of]
        diverged = {failure.client for failure in judged if failure.diverged and failure.phase == phase}
        if diverged and len(diverged) >= completed:
            raise DivergedError(
                f"round {server_round}: {len(diverged)} of {len(diverged) + completed} source clients sent values that "
                f"are not finite in phase {phase!r}. None is left out as the culprit: it is what all of them were sent."
                "\n  " + "\n  ".join(_lines(of_round))
            )
        if completed >= max(needed, 1):
            self.log_new()
            return
        self._named = len(self.failures)
        kind: type[Exception] = FederationError
        causes = [failure for failure in judged if failure.reason != NOT_AWAITED]
        if causes and all(failure.by_strategy for failure in causes):
            kind = StrategyError
        elif causes and all(failure.diverged for failure in causes):
            kind = DivergedError
        raise kind(
            f"round {server_round}: {completed} of {asked} source clients completed phase {phase!r}, {needed} are "
            "needed (--quorum).\n  " + "\n  ".join(_lines(of_round))
        )

    def log_new(self) -> None:
        """Log the failures that no warning and no error has named yet."""
        fresh, self._named = self.failures[self._named :], len(self.failures)
        for line in _lines(fresh):
            logger.warning("%s", line)

    def failed(self, phase: str, server_round: int) -> set[str]:
        """Return the clients with a failure in a phase of a round."""
        return {each.client for each in self.failures if (each.phase, each.round) == (phase, server_round)}

    def diverged(self, begun: int) -> list[str]:
        """Return the clients that sent values that are not finite, after the first ``begun`` failures."""
        return list(dict.fromkeys(failure.client for failure in self.failures[begun:] if failure.diverged))

    def rewind(self, begun: int, then: Iterable[Failure] = ()) -> None:
        """Replace all but the first ``begun`` failures by ``then``, which are not logged again."""
        self.failures[begun:] = then
        self._named = len(self.failures)

    def take(self) -> tuple[list[Failure], dict[str, Traffic]]:
        """Return the failures and the traffic since the last call."""
        failures, self._reported = self.failures[self._reported :], len(self.failures)
        traffic, self.traffic = self.traffic, {}
        return failures, traffic

    def unreported(self) -> dict[str, Any]:
        """Return the failures and the traffic since the last row, for a checkpoint; JSON."""
        failures = [asdict(failure) for failure in self.failures[self._reported :]]
        return {"failures": failures, "traffic": {client: asdict(moved) for client, moved in self.traffic.items()}}

    def restore(self, recorded: Mapping[str, Any]) -> None:
        """Continue from :meth:`unreported` of the process before."""
        self.failures += [Failure(**failure) for failure in recorded.get("failures", ())]
        self._named = len(self.failures)
        self.traffic = {client: Traffic(**moved) for client, moved in recorded.get("traffic", {}).items()}


def _records(content: RecordDict) -> Iterator[tuple[str, int, str]]:
    """Describe the arrays, metrics and identity of a message: name, bytes, shape; a model's arrays are one record."""
    for key, record in content.items():
        name = protocol.record_name(key)
        if isinstance(record, MetricRecord) or name == protocol.IDENTITY:
            yield name, record.count_bytes(), f"{len(record)} values"
        elif isinstance(record, ArrayRecord) and name in (protocol.MODEL, protocol.MOMENTUM):
            arrays = list(record.values())
            numbers = sum(prod(array.shape) for array in arrays)
            yield name, sum(len(array.data) for array in arrays), f"{numbers:,} numbers in {len(arrays)} arrays"
        elif isinstance(record, ArrayRecord):
            for tensor, array in record.items():
                yield f"{name}/{tensor}", len(array.data), " x ".join(map(str, array.shape)) or "1"


def _lines(failures: Iterable[Failure]) -> list[str]:
    """Write one line for all clients with the same round, phase and reason."""
    clients: dict[tuple[int, str, str], list[str]] = {}
    for failure in failures:
        clients.setdefault((failure.round, failure.phase, failure.reason), []).append(failure.client)
    return [
        f"round {number}, {phase}, client{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}: {reason}"
        for (number, phase, reason), names in clients.items()
    ]
