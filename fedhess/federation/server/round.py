"""One round of the federation, from top to bottom."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import DivergedError, FederationError, StrategyError, UsageError
from fedhess.base.users_code import users_code
from fedhess.federation.server.checkpoint import State, below
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.exchange import Exchange
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.ledger import Failure
from fedhess.federation.server.local_training import LocalPhase, RoundOutcome, check_reference
from fedhess.federation.server.norm_bound import Norms
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

Trained = tuple[LocalPhase, dict[str, Tensor]]  # with the mean update


class DomainRounds:
    """The rounds of a :class:`DomainStrategy`: references, local steps, mean in domain order, server step.

    The references are taken on the batch of the round's first local step. With one local step a round equals a step of
    the centralised algorithm; with more steps the references are stale from the second step on.
    """

    def __init__(self, strategy: DomainStrategy, config: RunConfig, template: HeadedModel) -> None:
        strategy.check(config)
        strategy.check_model(template)
        self._strategy = strategy
        self._shapes = StatisticShapes(
            strategy.statistics, template, strategy.network_statistics.keys(), strategy=config.strategy
        )
        self._previous = PreviousStatistics() if config.references == "previous" else None

    def run(self, federation: Federation, model: GlobalModel, server_round: int) -> RoundOutcome:
        """Run one round of training.

        Raises:
            DivergedError: Most clients sent values that are not finite, and no client is to blame.
            FederationError: Fewer source clients than the quorum completed a phase.
            StrategyError: The strategy's own code raised, or returned what it may not.
        """
        started = time.monotonic()
        config = federation.config

        # -- The source clients take part, or those drawn; a client that fails in a phase misses the rest
        phase, update = self._train_without_culprit(federation, model, server_round)

        # -- One step of the server optimizer along the mean update
        model.step(update, lr=config.server_rate.at(server_round))
        model.require_finite(f"round {server_round}: the server's step ({config.server_optimizer}, {config.strategy})")
        phase.outcome.seconds = time.monotonic() - started
        return phase.outcome

    def _train_without_culprit(self, federation: Federation, model: GlobalModel, server_round: int) -> Trained:
        """Train a round; if clients diverge, train it again without the client that outweighs all others together.

        If the others then stay finite, that client is recorded as the culprit in place of those that diverged.
        """
        begin = Exchange if self._previous is None else self._previous.exchange
        of_round = (federation, self._shapes, model.payload(), server_round)
        ledger, error, found = federation.ledger, None, None
        begun, before = len(ledger.failures), self._memory(federation)
        versions = {name: tensor._version for name, tensor in before[0][0].items()}
        ask = begin(*of_round)
        try:
            found = self._train(federation, model, ask)
        except DivergedError as raised:
            error = raised
        self._require_replaced(before[0][0], versions, federation.config.strategy)
        diverged = ledger.diverged(begun)
        suspect = _suspect(ask.norms) if diverged else None
        victims = [label for label in diverged if suspect is not None and label != suspect.label]
        if suspect is not None and victims:
            failures, after = ledger.failures[begun:], self._memory(federation)
            ledger.rewind(begun)
            self._recall(before, federation)
            try:
                without = self._train(federation, model, begin(*of_round, suspect))
            except FederationError:
                without = None
            if without is not None and not ledger.diverged(begun):
                reason = f"{', '.join(victims)} sent values that are not finite with its statistics, and nobody did"
                failure = Failure(server_round, "references", suspect.label, f"{reason} without them")
                ledger.failures.append(failure)
                completed = without[0].outcome.participants
                federation.require_quorum("references", server_round, completed, asked=ask.asked)
                return without
            ledger.rewind(begun, failures)
            self._recall(after, federation)
        if found is None:
            assert error is not None
            raise error
        return found

    def _train(self, federation: Federation, model: GlobalModel, ask: Exchange) -> Trained:
        strategy, config, server_round = self._strategy, federation.config, ask.server_round

        # -- References: zero, one or two exchanges of statistics
        with users_code(f"strategy {config.strategy!r}", "reference", type(strategy).reference, calls=Federation):
            reference = strategy.reference(ask)
            check_reference(reference)
        most = max(client.identity.train_examples for client in federation.source_clients)
        if server_round == 1:  # with local epochs the number of steps was not known before
            strategy.check_steps(config, round_steps(config, train_size=most, server_round=config.rounds).stop)
        if strategy.schedule.resets(round_steps(config, train_size=most, server_round=server_round)):
            model.reset_optimizer()  # if clients take different numbers of steps: when the first reaches the jump

        # -- Local training towards them, all clients at once unless the strategy does otherwise, and the mean update
        phase = LocalPhase(
            federation, model, ask.participants, reference, server_round, self._previous, asked=ask.asked
        )
        with users_code(
            f"strategy {config.strategy!r}", "local_training", type(strategy).local_training, calls=Federation
        ):
            update = strategy.local_training(phase, reference)
            _check_update(update, model)
        phase.require_quorum()
        return phase, update

    def _memory(self, federation: Federation) -> tuple[State, dict[str, Any]]:
        """Return the state before a round: the tensors themselves, since a round replaces them and writes to none."""
        return self.state(), federation.bound.state()

    def _require_replaced(self, tensors: Mapping[str, Tensor], versions: Mapping[str, int], strategy: str) -> None:
        for name, tensor in tensors.items():
            if tensor._version != versions[name]:  # torch counts writes to a tensor
                raise StrategyError(
                    f"strategy {strategy!r} wrote to a tensor of its state, {name.removeprefix('strategy/')!r}, by "
                    "which a round could be undone; replace it: self.state[name] = new"
                )

    def _recall(self, memory: tuple[State, dict[str, Any]], federation: Federation) -> None:
        self.restore(*memory[0])
        federation.bound.restore(memory[1])

    def state(self) -> State:
        """Return what the next round needs: the strategy's state and, if they are used, the round's statistics."""
        tensors = {f"strategy/{name}": tensor for name, tensor in self._strategy.state_dict().items()}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                key = name.removeprefix("strategy/")
                raise UsageError(
                    f"{type(self._strategy).__qualname__}: state[{key!r}]: expected a tensor, got {value!r}; keep it "
                    "as torch.tensor(...)"
                )
        if self._previous is None:
            return tensors, {}
        held, calls = self._previous.state()
        return tensors | {f"previous/{name}": tensor for name, tensor in held.items()}, {"previous": calls}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._strategy.load_state_dict(below("strategy/", tensors))
        if self._previous is not None:
            self._previous.restore(below("previous/", tensors), plain.get("previous", []))


def _suspect(exchanges: Sequence[Mapping[Client, Norms]]) -> Client | None:
    """Return the first client that outweighs all others together in a statistic, if there is one.

    Two clients are not compared, since one nearly always outweighs the other.
    """
    for norms in exchanges:
        if len(norms) < 3:
            continue
        for name in next(iter(norms.values()), ()):
            longest = max(norms, key=lambda client: norms[client][name])
            others = sum(each[name] for client, each in norms.items() if client is not longest)
            if norms[longest][name] > others:  # also if it is so large that its norm is inf
                return longest
    return None


def _check_update(update: object, model: GlobalModel) -> None:
    """Check what a strategy's own local training returned."""
    if not isinstance(update, Mapping):
        raise TypeError(f"expected the mean update by name, got {type(update).__name__}")
    for name in model.update_names:
        got = update.get(name)
        if not isinstance(got, Tensor) or got.shape != model.tensors[name].shape:
            shape = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else f"{got!r}"
            raise TypeError(f"expected {name!r} of shape {tuple(model.tensors[name].shape)} in it, got {shape}")
