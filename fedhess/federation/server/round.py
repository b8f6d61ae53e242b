"""One round of the federation, from top to bottom."""

import time

from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.alignment.strategy_code import strategy_code
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.exchange import Exchange
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.local_training import LocalPhase, RoundOutcome, check_reference
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.settings.run_config import RunConfig


def run_round(
    strategy: DomainStrategy,
    federation: Federation,
    model: GlobalModel,
    *,
    shapes: StatisticShapes,
    config: RunConfig,
    server_round: int,
    previous: PreviousStatistics | None = None,
) -> RoundOutcome:
    """Run one round of training: references, local steps, mean in domain order, server step.

    The references are taken on the batch of the round's first local step. With one local step a round equals a step of
    the centralised algorithm; with more they are stale from the second step on.

    Args:
        strategy: Gives the references.
        federation: The clients.
        model: The global model; it takes one server step.
        shapes: The strategy's statistics and what shape each has.
        config: The settings of the run.
        server_round: Number of the round, from 1.
        previous: The statistics of the round before, where ``references="previous"`` uses them instead of exchanges.

    Returns:
        Who took part and their metrics.

    Raises:
        FederationError: Fewer source clients than the quorum completed a phase.
        StrategyError: The strategy's own code raised, or returned what it may not.
    """
    started = time.monotonic()

    # -- Who takes part: the source clients, or those drawn; one that drops out of a phase misses the rest of the round
    begin = Exchange if previous is None else previous.exchange
    ask = begin(federation, shapes, model.payload(), config, server_round)

    # -- References: zero, one or two exchanges of statistics
    with strategy_code(config.strategy, "reference", type(strategy).reference, calls=Federation):
        reference = strategy.reference(ask)
        check_reference(reference)
    most = max(client.identity.train_examples for client in federation.source_clients)
    if strategy.schedule.resets(round_steps(config, train_size=most, server_round=server_round)):
        model.reset_optimizer()  # where clients take different numbers of steps: when the first comes to the jump

    # -- Local training towards them, all clients at once unless the strategy says otherwise, and the mean update
    phase = LocalPhase(federation, model, ask.participants, reference, config, server_round, previous)
    with strategy_code(config.strategy, "local_training", type(strategy).local_training, calls=Federation):
        update = strategy.local_training(phase, reference)
    phase.require_quorum()

    # -- One step of the server optimizer along the mean update
    model.step(update)
    model.require_finite(f"round {server_round}: the server's step ({config.server_optimizer}, {config.strategy})")
    phase.outcome.seconds = time.monotonic() - started
    return phase.outcome
