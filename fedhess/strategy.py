"""A strategy's two halves, and one round of the federation from top to bottom.

A strategy is one class. Its server half, :meth:`DomainStrategy.reference`, asks the source clients for statistics and
turns them into references; its client half, :meth:`DomainStrategy.penalty`, pulls a client's statistics towards them.
Server and client build the object from the same run config.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedhess import protocol
from fedhess.aggregation import GlobalModel, WeightedMean
from fedhess.config import RunConfig
from fedhess.exchange import Exchange
from fedhess.federation import Federation
from fedhess.roster import Client
from fedhess.shapes import StatisticShapes
from fedhess.statistics import Statistic
from fedhess.training import Step
from fedhess.validation import read_tensors


@dataclass(frozen=True)
class PenaltySchedule:
    """The weight of a penalty over the run: 1 at first, ``weight`` from step ``anneal_steps`` on.

    Once the weight exceeds 1 the whole objective is divided by it, so that the step size stays what it was. Source:
    the scripts of Arjovsky et al., "Invariant Risk Minimization" (arXiv 1907.02893), followed by V-REx, Fishr and the
    Hessian-alignment scripts.

    Attributes:
        weight: Weight from the annealing step on, at least 0.
        anneal_steps: Number of local steps (not rounds) with weight 1.
    """

    weight: float = 1.0
    anneal_steps: int = 0

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 0 over the whole run."""
        return self.weight if step >= self.anneal_steps else 1.0


class DomainStrategy:
    """Base of every strategy with both halves; as it stands it is ERM: no statistics, no reference, no penalty.

    Attributes:
        statistics: What a client may be asked, by name: functions of a ``HeadBatch`` and of named tensors and scalars.
            A client computes only what its own copy of the strategy lists here.
        schedule: Weight of the penalty over the run.
    """

    statistics: ClassVar[Mapping[str, Statistic]] = {}
    schedule: PenaltySchedule = PenaltySchedule()

    def reference(self, ask: Exchange) -> dict[str, Tensor]:
        """Server half: exchange statistics with the source clients and return the references of the round.

        Args:
            ask: ``ask("name", **given)`` returns the statistic of every source domain; each call is one exchange.
        """
        del ask
        return {}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Client half: the penalty of one local step, (), or None for none.

        Args:
            step: The step's batch, features and statistics.
            reference: What :meth:`reference` returned; constants.
        """
        del step, reference
        return None

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Combine loss and penalty: ``(L + w * penalty) / max(1, w)``, w the schedule's weight; L without penalty."""
        penalty = self.penalty(step, reference)
        if penalty is None:
            return step.loss
        weight = self.schedule.at(step.index)
        objective = step.loss + (penalty if weight == 1.0 else weight * penalty)
        return objective / weight if weight > 1.0 else objective

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the server half remembers between rounds (moving averages and the like); saved in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        assert not state, f"{type(self).__name__} keeps no state, got {sorted(state)}"


@dataclass
class RoundOutcome:
    """What a round of training did.

    Attributes:
        participants: Source clients that completed every phase.
        metrics: Each participant's training metrics: examples, loss and objective at the first step, seconds.
        seconds: Wall time of the round's training.
    """

    participants: list[Client]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


def run_round(
    strategy: DomainStrategy,
    federation: Federation,
    model: GlobalModel,
    *,
    shapes: StatisticShapes,
    config: RunConfig,
    server_round: int,
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

    Returns:
        Who took part and their metrics.

    Raises:
        FederationError: Fewer source clients than the quorum completed a phase.
    """
    started = time.monotonic()

    # -- Who takes part: the source clients; one that drops out of a phase misses the rest of the round
    ask = Exchange(federation, shapes, model.payload(), config, server_round)

    # -- References: zero, one or two exchanges of statistics
    reference = {name: value.detach() for name, value in strategy.reference(ask).items()}

    # -- Local training towards them
    parts: dict[str, ArrayRecord | ConfigRecord] = {protocol.REFERENCE: protocol.encode_tensors(reference)}
    expected = {name: model.tensors[name] for name in model.update_names}

    def read(client: Client, content: RecordDict) -> tuple[dict[str, Tensor], dict[str, float]]:
        del client
        return read_tensors(content, protocol.MODEL, like=expected), protocol.metrics_of(content)

    replies = federation.exchange(
        "train",
        ask.participants,
        message_type=protocol.TRAIN,
        server_round=server_round,
        model=model.payload(),
        parts=parts,
        read=read,
        deadline=config.deadline,
    )

    # -- Mean in domain order, one reply in memory at a time
    mean = WeightedMean()
    outcome = RoundOutcome(participants=[])
    weights = client_weights(ask.participants, config)
    for client, (update, metrics) in replies:
        mean.add(update, weights[client])
        outcome.participants.append(client)
        outcome.metrics[client.label] = metrics
    federation.require_quorum("train", server_round, outcome.participants)

    # -- One step of the server optimizer along the mean update
    model.step(mean.result())
    outcome.seconds = time.monotonic() - started
    return outcome


def client_weights(clients: list[Client], config: RunConfig) -> dict[Client, float]:
    """Weigh clients by domain (each domain 1, shared by its clients by examples) or by their training examples."""
    if config.weighting == "examples":
        return {client: float(client.identity.train_examples) for client in clients}
    totals: dict[str, int] = {}
    for client in clients:
        totals[client.identity.domain] = totals.get(client.identity.domain, 0) + client.identity.train_examples
    return {client: client.identity.train_examples / totals[client.identity.domain] for client in clients}
