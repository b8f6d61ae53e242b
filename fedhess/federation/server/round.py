"""One round of the federation, from top to bottom."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.alignment.strategy_code import strategy_code
from fedhess.base.errors import DivergedError, FederationError
from fedhess.federation.server.checkpoint import State, below
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.exchange import Exchange
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.ledger import Failure
from fedhess.federation.server.local_training import LocalPhase, RoundOutcome, check_reference
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

_Memory = tuple[dict[str, Tensor], Any, dict[str, Any]]  # of strategy, previous statistics and bound


class DomainRounds:
    """The rounds of a :class:`DomainStrategy`: references, local steps, mean in domain order, server step.

    The references are taken on the batch of the round's first local step. With one local step a round equals a step of
    the centralised algorithm; with more they are stale from the second step on.

    Args:
        strategy: Computes the references.
        config: The settings of the run.
        template: A model of the run's architecture.

    Raises:
        UsageError: The settings do not fit the strategy.
    """

    def __init__(self, strategy: DomainStrategy, config: RunConfig, template: HeadedModel) -> None:
        strategy.check(config)
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
        begun, before = len(federation.ledger.failures), self._memory(federation)
        ask = self._ask(federation, model, server_round)
        try:
            phase, update = self._train(ask, federation, model)
        except DivergedError:
            found = self._without_culprit(ask, federation, model, begun, before)
            if found is None:
                raise
            phase, update = found
        else:
            if federation.ledger.diverged(begun):
                phase, update = self._without_culprit(ask, federation, model, begun, before) or (phase, update)

        # -- One step of the server optimizer along the mean update
        model.step(update, lr=config.server_rate.at(server_round))
        model.require_finite(f"round {server_round}: the server's step ({config.server_optimizer}, {config.strategy})")
        phase.outcome.seconds = time.monotonic() - started
        return phase.outcome

    def _ask(self, federation: Federation, model: GlobalModel, server_round: int, *without: Client) -> Exchange:
        """Begin the round: the source clients take part, or those drawn; one that fails in a phase misses the rest."""
        begin = Exchange if self._previous is None else self._previous.exchange
        return begin(federation, self._shapes, model.payload(), server_round, *without)

    def _train(self, ask: Exchange, federation: Federation, model: GlobalModel) -> tuple[LocalPhase, dict[str, Tensor]]:
        strategy, config, server_round = self._strategy, federation.config, ask.server_round

        # -- References: zero, one or two exchanges of statistics
        with strategy_code(config.strategy, "reference", type(strategy).reference, calls=Federation):
            reference = strategy.reference(ask)
            check_reference(reference)
        most = max(client.identity.train_examples for client in federation.source_clients)
        if strategy.schedule.resets(round_steps(config, train_size=most, server_round=server_round)):
            model.reset_optimizer()  # where clients take different numbers of steps: when the first reaches the jump

        # -- Local training towards them, all clients at once unless the strategy does otherwise, and the mean update
        phase = LocalPhase(
            federation, model, ask.participants, reference, server_round, self._previous, asked=ask.asked
        )
        with strategy_code(config.strategy, "local_training", type(strategy).local_training, calls=Federation):
            update = strategy.local_training(phase, reference)
        phase.require_quorum()
        return phase, update

    def _without_culprit(
        self, ask: Exchange, federation: Federation, model: GlobalModel, begun: int, before: _Memory
    ) -> tuple[LocalPhase, dict[str, Tensor]] | None:
        """Where clients diverged: see whether one client's statistics are the cause, by a round without it.

        The one that is tried outweighs all others together in a statistic. Where all others stay finite without it, it
        is recorded as the culprit in their place. Else what was before remains: who diverged is left out by name.

        Returns:
            The round without the culprit; None where there is none.

        Raises:
            FederationError: There is one, and the others are fewer than the quorum.
        """
        suspect, ledger, server_round = ask.suspect(), federation.ledger, ask.server_round
        victims = [label for label in ledger.diverged(begun) if suspect is None or label != suspect.label]
        if suspect is None or not victims:
            return None
        failures, after = ledger.failures[begun:], self._memory(federation)
        ledger.rewind(begun)
        self._recall(before, federation)
        try:
            found = self._train(self._ask(federation, model, server_round, suspect), federation, model)
        except FederationError:
            found = None
        if found is None or ledger.diverged(begun):
            ledger.rewind(begun, failures)
            self._recall(after, federation)
            return None
        reason = (
            f"{', '.join(victims)} sent values that are not finite with its statistics, and nobody did without them"
        )
        ledger.failures.append(Failure(server_round, "references", suspect.label, reason))
        asked = len(federation.participants(server_round))
        federation.require_quorum("references", server_round, found[0].outcome.participants, asked=asked)
        return found

    def _memory(self, federation: Federation) -> _Memory:
        """Return what a round changes in strategy, statistics and bound."""
        previous = self._previous
        calls = None if previous is None else (previous.last, previous.current)
        state = {name: tensor.clone() for name, tensor in self._strategy.state_dict().items()}
        return state, calls, federation.bound.state()

    def _recall(self, memory: _Memory, federation: Federation) -> None:
        state, calls, medians = memory
        self._strategy.load_state_dict(state)
        if self._previous is not None:
            self._previous.last, self._previous.current = calls
        federation.bound.restore(medians)

    def state(self) -> State:
        """Return what the next round needs: the strategy's state and, if they are used, the round's statistics."""
        tensors = {f"strategy/{name}": tensor for name, tensor in self._strategy.state_dict().items()}
        if self._previous is None:
            return tensors, {}
        held, calls = self._previous.state()
        return tensors | {f"previous/{name}": tensor for name, tensor in held.items()}, {"previous": calls}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self._strategy.load_state_dict(below("strategy/", tensors))
        if self._previous is not None:
            self._previous.restore(below("previous/", tensors), plain.get("previous", []))
