"""Who is to blame where clients diverge: the round is run again without a client that outweighs all others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fedhess.base.errors import DivergedError, FederationError, StrategyError
from fedhess.federation.server.checkpoint import State
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.exchange import Exchange
from fedhess.federation.server.ledger import Failure
from fedhess.federation.server.local_training import LocalPhase
from fedhess.federation.server.norm_bound import Norms

Trained = tuple[LocalPhase, dict[str, Tensor]]  # the mean update too


class Stateful(Protocol):
    """What remembers something from round to round."""

    def state(self) -> State:
        """Return it."""

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take it back."""


def train_without_culprit(
    begin: Callable[..., Exchange], train: Callable[[Exchange], Trained], federation: Federation, rounds: Stateful
) -> Trained:
    """Train a round; where clients diverge, see whether one client's statistics are the cause, by a round without it.

    The one that is tried outweighs all others together in a statistic. Where all others stay finite without it, it
    is recorded as the culprit in their place. Else what was before remains: who diverged is left out by name.

    Args:
        begin: Begins the round, without a client if it is given one.
        train: Computes references and trains.
        federation: Its failures and its bound on norms are those of the round that counts.
        rounds: So is its state.

    Raises:
        DivergedError: Most clients sent values that are not finite, and no client is to blame.
        FederationError: Fewer source clients than the quorum completed a phase.
        StrategyError: The strategy wrote to a tensor of its state.
    """
    ledger, error, found = federation.ledger, None, None
    begun, before = len(ledger.failures), _memory(federation, rounds)
    ask = begin()
    try:
        found = train(ask)
    except DivergedError as raised:
        error = raised
    _require_replaced(before, federation.config.strategy)
    diverged = ledger.diverged(begun)
    suspect = _suspect(ask.norms) if diverged else None
    victims = [label for label in diverged if suspect is not None and label != suspect.label]
    if suspect is not None and victims:
        failures, after = ledger.failures[begun:], _memory(federation, rounds)
        ledger.rewind(begun)
        _recall(before, federation, rounds)
        try:
            without = train(begin(suspect))
        except FederationError:
            without = None
        if without is not None and not ledger.diverged(begun):
            reason = f"{', '.join(victims)} sent values that are not finite with its statistics, and nobody did"
            failure = Failure(ask.server_round, "references", suspect.label, f"{reason} without them")
            ledger.failures.append(failure)
            completed = without[0].outcome.participants
            federation.require_quorum("references", ask.server_round, completed, asked=ask.asked)
            return without
        ledger.rewind(begun, failures)
        _recall(after, federation, rounds)
    if error is not None:
        raise error
    assert found is not None
    return found


def _suspect(exchanges: Sequence[Mapping[Client, Norms]]) -> Client | None:
    """Return a client that outweighs all others together in a statistic, the first such one, if there is any."""
    for norms in exchanges:
        for name in next(iter(norms.values()), ()):
            longest = max(norms, key=lambda client: norms[client][name])
            others = sum(each[name] for client, each in norms.items() if client is not longest)
            if norms[longest][name] > others:  # also where it is so large that its norm is inf
                return longest
    return None


@dataclass(frozen=True)
class _Memory:
    """What was before a round: the tensors themselves, since a round replaces them and writes to none."""

    state: State
    medians: dict[str, Any]
    versions: dict[str, int]  # of each tensor: torch counts what is written to it


def _memory(federation: Federation, rounds: Stateful) -> _Memory:
    state = rounds.state()
    versions = {name: tensor._version for name, tensor in state[0].items()}
    return _Memory(state, federation.bound.state(), versions)


def _require_replaced(memory: _Memory, strategy: str) -> None:
    for name, tensor in memory.state[0].items():
        if tensor._version != memory.versions[name]:
            raise StrategyError(
                f"strategy {strategy!r} wrote to a tensor of its state, {name.removeprefix('strategy/')!r}, by which a "
                "round could be undone; replace it: self.state[name] = new"
            )


def _recall(memory: _Memory, federation: Federation, rounds: Stateful) -> None:
    rounds.restore(*memory.state)
    federation.bound.restore(memory.medians)
