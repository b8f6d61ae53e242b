"""A strategy's two halves, and one round of the federation from top to bottom.

A strategy is one class. Its server half, :meth:`DomainStrategy.reference`, asks the source clients for statistics and
turns them into references; its client half, :meth:`DomainStrategy.penalty`, pulls a client's statistics towards them.
Server and client build the object from the same run config.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedhess.alignment.shapes import StatisticShapes
from fedhess.alignment.statistics import NetworkStatistic, Statistic
from fedhess.base.errors import UsageError, strategy_code
from fedhess.federation.client.batches import round_steps
from fedhess.federation.client.training import Step
from fedhess.federation.server.clients import Federation
from fedhess.federation.server.exchange import Exchange, PerDomain
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.local_training import LocalPhase, Reference, RoundOutcome, check_reference
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.settings.run_config import RunConfig

Annealing = Literal["rescale", "reset"]
Scale = Literal["relative", "absolute"]


@dataclass(frozen=True)
class PenaltySchedule:
    """The weight of a penalty over the run: ``before`` at first, ``weight`` from step ``anneal_steps`` on.

    Two ways to soften the jump are in use. ``"rescale"``: once the weight exceeds 1 the whole objective is divided by
    it, so that the step size stays what it was (the scripts of Arjovsky et al., "Invariant Risk Minimization", arXiv
    1907.02893, followed by those of V-REx, Fishr and Hessian alignment). ``"reset"``: the server optimizer forgets its
    moments at that step (DomainBed).

    Attributes:
        weight: Weight from the annealing step on, at least 0.
        anneal_steps: Number of local steps (not rounds) with weight ``before``.
        annealing: How the jump is softened.
        before: Weight until the annealing step, at least 0.

    Raises:
        ValueError: A weight or the number of steps is negative.
    """

    weight: float = 1.0
    anneal_steps: int = 0
    annealing: Annealing = "rescale"
    before: float = 1.0

    def __post_init__(self) -> None:
        if min(self.weight, self.anneal_steps, self.before) < 0:
            given = (self.weight, self.anneal_steps, self.before)
            raise ValueError(f"expected weight, anneal_steps and the weight before >= 0, got {given}")

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 0 over the whole run."""
        return self.weight if step >= self.anneal_steps else self.before

    @property
    def is_off(self) -> bool:
        """Whether the weight is 0 at every step."""
        return self.weight == 0 and (self.anneal_steps == 0 or self.before == 0)

    def divisor(self, step: int) -> float:
        """Return what the objective is divided by at a step."""
        return max(1.0, self.at(step)) if self.annealing == "rescale" else 1.0

    def resets(self, steps: range) -> bool:
        """Whether the server optimizer begins anew in the round of these steps."""
        return self.annealing == "reset" and self.anneal_steps > 0 and self.anneal_steps in steps


class PenaltyScale:
    """What the squared distances of statistics to their means are divided by.

    ``"absolute"``: by nothing, as published. A coefficient then fits one length of the features: ||g||^2 grows with its
    square, ||diag H||^2 with its fourth and ||H g||^2 with its sixth power.

    ``"relative"``: by the largest size that the statistic has had so far, ``max over rounds of mean_e ||s_e||^2``, so
    that a coefficient means the same whatever the features' length and the number of classes. Dividing by the size of
    the round alone would raise the coefficient without bound as the gradients vanish. The penalty's gradient at the
    head is then limited to the loss's, :meth:`Step.limited`: with fast optimizers a penalty of any fixed coefficient
    diverges on one network or another.

    Args:
        kind: Which of the two.
    """

    def __init__(self, kind: Scale) -> None:
        self.kind = kind
        self._sizes: dict[str, Tensor] = {}

    def references(self, answers: Mapping[str, PerDomain]) -> dict[str, Tensor]:
        """Return the mean of each statistic by its name, and where relative its size as ``NAME_size``, ()."""
        if self.kind == "relative":
            for name, values in answers.items():
                squares = {domain: value.square().sum() for domain, value in values.items()}
                size, key = values.with_values(squares).mean(), f"{name}_size"
                self._sizes[key] = torch.maximum(size, self._sizes.get(key, size))
        means = {name: values.mean() for name, values in answers.items()}
        return means | {f"{name}_size": self._sizes[f"{name}_size"] for name in means if self._sizes}

    def scaled(self, distance: Tensor, name: str, reference: Mapping[str, Tensor]) -> Tensor:
        """Divide a squared distance to the reference of that name, ()."""
        if self.kind == "absolute":
            return distance
        return distance / reference[f"{name}_size"].clamp_min(torch.finfo(distance.dtype).tiny)

    def limited(self, penalty: Tensor, step: Step) -> Tensor:
        """Limit the gradient of the whole penalty where it is relative."""
        return penalty if self.kind == "absolute" else step.limited(penalty)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sizes so far."""
        return dict(self._sizes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sizes."""
        self._sizes = dict(state)


class DomainStrategy:
    """Base of every strategy with both halves; as it stands it is ERM: no statistics, no reference, no penalty.

    Attributes:
        statistics: What a client may be asked, by name: functions of a ``HeadBatch`` and of named tensors and scalars.
            A client computes only what its own copy of the strategy lists here.
        network_statistics: The same for functions of a whole ``Forward`` pass with its autograd graph.
        schedule: Weight of the penalty over the run.
    """

    statistics: ClassVar[Mapping[str, Statistic]] = {}
    network_statistics: ClassVar[Mapping[str, NetworkStatistic]] = {}
    schedule: PenaltySchedule = PenaltySchedule()

    def check(self, config: RunConfig) -> None:
        """Insist on settings of the run that suit the strategy, before anything runs; by default all do.

        Raises:
            UsageError: One does not.
        """
        del config

    def reference(self, ask: Exchange) -> Reference:
        """Server half: exchange statistics with the source clients and return the references of the round.

        Args:
            ask: ``ask("name", **given)`` returns the statistic of every source domain; each call is one exchange.

        Returns:
            Tensors, which every client gets, or values by domain, of which each client gets its own domain's.
        """
        del ask
        return {}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Client half: the penalty of one local step, (), or None for none.

        Args:
            step: The step's batch, features and statistics.
            reference: What :meth:`reference` returned; constants on the model's device. Whole numbers of shape () are
                on the host instead, so that ``int(reference["count"])`` does not wait for a GPU.
        """
        del step, reference
        return None

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Combine loss and penalty: ``(L + w * penalty) / divisor`` with the schedule's weight w; L without penalty.

        Where the weight is 0 the penalty is not computed.

        Raises:
            UsageError: The penalty is not a tensor (), or nothing that is trained can change it.
        """
        weight, divisor = self.schedule.at(step.index), self.schedule.divisor(step.index)
        penalty = None if weight == 0 else self.penalty(step, reference)
        if penalty is None:
            return step.loss
        if not isinstance(penalty, Tensor) or penalty.shape != () or not penalty.requires_grad:
            got = f"a {type(penalty).__name__}"
            if isinstance(penalty, Tensor):
                got = f"shape {tuple(penalty.shape)}" if penalty.shape != () else "a tensor without a gradient"
            raise UsageError(
                f"strategy {type(self).__name__}, penalty: expected a tensor of shape () with a gradient, or None for "
                f"none, got {got}; compute it in torch from the step's features, logits or statistics"
            )
        objective = step.loss + (penalty if weight == 1.0 else weight * penalty)
        return objective / divisor if divisor > 1.0 else objective

    def local_training(self, phase: LocalPhase, reference: Reference) -> dict[str, Tensor]:
        """Server half: have the clients train and return what the server optimizer steps along.

        Args:
            phase: Sends the train messages: to all at once (:meth:`LocalPhase.mean_update`), or domain by domain.
            reference: What :meth:`reference` returned.

        Returns:
            The update, ``before - after`` by name; by default the mean over the clients.
        """
        del reference
        return phase.mean_update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the server half remembers between rounds (moving averages and the like); saved in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        assert not state, f"{type(self).__name__} keeps no state, got {sorted(state)}"


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
