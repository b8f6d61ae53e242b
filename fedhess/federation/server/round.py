"""One round of the federation, from top to bottom."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.users_code import users_code
from fedhess.federation.server.blame import Trained, train_without_culprit
from fedhess.federation.server.checkpoint import State, below
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.exchange import Exchange
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.local_training import LocalPhase, RoundOutcome, check_reference
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig


class DomainRounds:
    """The rounds of a :class:`DomainStrategy`: references, local steps, mean in domain order, server step.

    The references are taken on the batch of the round's first local step. With one local step a round equals a step of
    the centralised algorithm; with more they are stale from the second step on.

    Raises:
        UsageError: The settings do not fit the strategy.
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

        # -- The source clients take part, or those drawn; one that fails in a phase misses the rest
        begin = Exchange if self._previous is None else self._previous.exchange
        phase, update = train_without_culprit(
            partial(begin, federation, self._shapes, model.payload(), server_round),
            partial(self._train, federation, model),
            federation,
            self,
        )

        # -- One step of the server optimizer along the mean update
        model.step(update, lr=config.server_rate.at(server_round))
        model.require_finite(f"round {server_round}: the server's step ({config.server_optimizer}, {config.strategy})")
        phase.outcome.seconds = time.monotonic() - started
        return phase.outcome

    def _train(self, federation: Federation, model: GlobalModel, ask: Exchange) -> Trained:
        strategy, config, server_round = self._strategy, federation.config, ask.server_round

        # -- References: zero, one or two exchanges of statistics
        with users_code(f"strategy {config.strategy!r}", "reference", type(strategy).reference, calls=Federation):
            reference = strategy.reference(ask)
            check_reference(reference)
        most = max(client.identity.train_examples for client in federation.source_clients)
        if strategy.schedule.resets(round_steps(config, train_size=most, server_round=server_round)):
            model.reset_optimizer()  # where clients take different numbers of steps: when the first reaches the jump

        # -- Local training towards them, all clients at once unless the strategy does otherwise, and the mean update
        phase = LocalPhase(
            federation, model, ask.participants, reference, server_round, self._previous, asked=ask.asked
        )
        with users_code(
            f"strategy {config.strategy!r}", "local_training", type(strategy).local_training, calls=Federation
        ):
            update = strategy.local_training(phase, reference)
        phase.require_quorum()
        return phase, update

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
