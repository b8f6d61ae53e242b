"""What a strategy is: two halves in one class, with the weight of its penalty over the run.

A strategy is one class. Its server half, :meth:`DomainStrategy.reference`, asks the source clients for statistics and
turns them into references; its client half, :meth:`DomainStrategy.penalty`, pulls a client's statistics towards them.
Server and client build the object from the same run config.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import Statistic
from fedhess.alignment.step import LocalStep, NetworkStatistic, Step
from fedhess.base.errors import UsageError
from fedhess.models.headed import HeadedModel
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

# What a strategy's server half sends to the clients: tensors for all, or values by domain, each to its own clients.
Reference = Mapping[str, Tensor | Mapping[str, Tensor]]

Annealing = Literal["rescale", "reset"]
Scale = Literal["relative", "absolute"]
Estimate = Literal["batch", "corrected"]


@dataclass(frozen=True)
class PenaltySchedule:
    """The weight of a penalty over the run: ``before`` at first, ``weight`` from local step ``anneal_steps`` on.

    Two ways to soften the jump are in use. ``"rescale"``: once the weight exceeds 1 the whole objective is divided by
    it, so that the step size stays what it was (the scripts of Arjovsky et al., "Invariant Risk Minimization", arXiv
    1907.02893, followed by those of V-REx, Fishr and Hessian alignment). ``"reset"``: the server optimizer forgets its
    moments at that step (DomainBed).

    Raises:
        ValueError: A weight or the number of steps is negative.
    """

    weight: float = 1.0
    anneal_steps: int = 0
    annealing: Annealing = "rescale"
    before: float = 1.0
    coefficients: Sequence[float] = (1.0,)  # of the penalty's terms

    def __post_init__(self) -> None:
        if min(self.weight, self.anneal_steps, self.before) < 0:
            given = (self.weight, self.anneal_steps, self.before)
            raise ValueError(f"expected weight, anneal_steps and the weight before >= 0, got {given}")

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 0 over the whole run."""
        return self.weight if step >= self.anneal_steps else self.before

    @property
    def is_off(self) -> bool:
        """Whether the penalty is 0 at every step: by its weight, or since each term's own coefficient is 0."""
        return not any(self.coefficients) or (self.weight == 0 and (self.anneal_steps == 0 or self.before == 0))

    def divisor(self, step: int) -> float:
        """Return what the objective is divided by at a step."""
        return max(1.0, self.at(step)) if self.annealing == "rescale" else 1.0

    def resets(self, steps: range) -> bool:
        """Whether the server optimizer is reset in the round of these steps."""
        return self.annealing == "reset" and self.anneal_steps > 0 and self.anneal_steps in steps and not self.is_off


class PenaltyScale:
    """How the squared distance of a statistic to its mean over the domains enters a penalty.

    ``"absolute"``: as it is, as published. A coefficient then fits one length of the features: ||g||^2 grows with the
    square of the length, ||diag H||^2 with its fourth and ||H g||^2 with its sixth power.

    ``"relative"``: divided by the largest size that the statistic has had so far, ``max over rounds of mean_e
    ||s_e||^2``, so that a coefficient means the same whatever the features' length and the number of classes. Dividing
    by the size of the round alone would raise the coefficient without bound as the gradients vanish. Strategies with
    relative penalties set :attr:`DomainStrategy.limited`: with fast optimizers a penalty of any fixed coefficient
    diverges on one network or another.

    Args:
        kind: ``"absolute"`` or ``"relative"``.
        sizes: Where the largest sizes are kept: the strategy's :attr:`DomainStrategy.state`.
        estimate: ``"batch"``: the distance of the batch's statistic, as published, which is in expectation larger than
            the domain's by the variance of the statistic over batches. ``"corrected"``: without that variance, see
            :meth:`Step.squared_distance`. By default corrected if relative.

    Raises:
        ValueError: A corrected distance, which can be negative, is absolute: nothing would limit it.
    """

    def __init__(self, kind: Scale, sizes: dict[str, Tensor], estimate: Estimate | None = None) -> None:
        self.kind, self.sizes = kind, sizes
        self.estimate: Estimate = estimate or ("corrected" if kind == "relative" else "batch")
        self.corrected = self.estimate == "corrected"
        if self.corrected and kind == "absolute":
            raise ValueError('expected scale="relative" with estimate="corrected", got "absolute"')

    def references(self, answers: Mapping[str, PerDomain]) -> dict[str, Tensor | Mapping[str, Tensor]]:
        """Return the mean of each statistic by name and, if relative, its size as ``NAME_size``, ().

        If corrected, also by domain ``domain_examples``, how many the clients behind its values hold, and
        ``example_weight``, the weight of one of them in the means, () each.
        """
        means: dict[str, Tensor | Mapping[str, Tensor]] = {name: values.mean() for name, values in answers.items()}
        if self.kind == "absolute":
            return means
        for name, values in answers.items():
            squares = {domain: value.square().sum() for domain, value in values.items()}
            size, key = values.with_values(squares).mean(), f"{name}_size"
            self.sizes[key] = torch.maximum(size, self.sizes.get(key, size))
        if self.corrected and answers:
            total, examples = sum(values.weights[domain] for domain in values), values.examples
            means["domain_examples"] = {domain: torch.tensor(examples[domain]) for domain in values}
            means["example_weight"] = {d: size.new_tensor(values.weights[d] / total / examples[d]) for d in values}
        return means | {f"{name}_size": self.sizes[f"{name}_size"] for name in answers}

    def share(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return q, (), the share of the plain distance in one that is corrected; None where it is not.

        q = B / N + v (n - B) for a batch of B of the domain's N examples that stands for n in the reference
        (:attr:`Step.in_answers`), where each has the weight v. Then the gradient by a statistic that is a mean over
        examples has no bias: where the batch, and what its client holds, are drawn from the domain without replacement,
        its covariance with the halves is -S^2 / N, with itself S^2 (1 / B - 1 / N) and with the reference
        v S^2 (n / B - 1), for examples of variance S^2.
        """
        if not self.corrected:
            return None
        size, examples = step.batch.size, int(reference["domain_examples"])
        if size >= examples:
            return None
        return size / examples + reference["example_weight"] * (step.in_answers - size)

    def scaled(self, distance: Tensor, name: str, reference: Mapping[str, Tensor]) -> Tensor:
        """Return a squared distance to the named reference, (), divided by the size if relative."""
        if self.kind == "absolute":
            return distance
        return distance / reference[f"{name}_size"].clamp_min(torch.finfo(distance.dtype).tiny)


@dataclass
class ClientUpdate:
    """Mean of local training: ``before - after`` by name, and the optimizers' momentum if it was requested.

    The update of a single client also has :attr:`ClientReply.held_out` if that was requested.
    """

    update: dict[str, Tensor]
    momentum: dict[str, Tensor]
    held_out: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientReply:
    """One client's result of a round, as it enters the mean of the updates.

    Attributes:
        client: The client's label: its domain, and its number there unless it is the first.
        weight: Weight of its update in the mean, which divides by the sum of all replies' weights.
        examples: Its training examples by domain.
        steps: Local steps that it took.
        update: ``before - after`` by name. Do not write to it; copy what is kept.
        held_out: ``"loss"`` and ``"accuracy"`` of the model that it trained, by domain, if requested.
    """

    client: str
    weight: float
    examples: Mapping[str, int]
    steps: int
    update: Mapping[str, Tensor]
    held_out: Mapping[str, Mapping[str, float]]


class Ask(Protocol):
    """The server's questions to the source clients of a round. Each call is one exchange of messages."""

    @property
    def domains(self) -> Sequence[str]:
        """Names of the run's source domains. Answers lack domains without a client in the round."""

    @property
    def seed(self) -> int:
        """Seed that the round's domains share, for common random numbers."""

    @property
    def server_round(self) -> int:
        """Number of the round, from 1."""

    def __call__(self, name: str, **given: Tensor | Scalar) -> PerDomain:
        """Ask for one of the strategy's statistics; ``given`` are its function's arguments besides the batch."""

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Ask for several statistics in one exchange; each function is given what it has a parameter for."""

    def held_out(self) -> dict[str, PerDomain]:
        """Ask for ``"loss"`` and ``"accuracy"`` of the round's model on the sources' evaluation examples."""


class GlobalTensors(Protocol):
    """The global model as tensors by name."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""

    @property
    def trained_names(self) -> Sequence[str]:
        """The trained parameters."""

    @property
    def update_names(self) -> Sequence[str]:
        """The tensors that an update has: trained parameters and buffers."""


class LocalTraining(Protocol):
    """The local training of a round, as a strategy's server half directs it."""

    @property
    def model(self) -> GlobalTensors:
        """The global model, which the round began from."""

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""

    @property
    def server_round(self) -> int:
        """Number of the round, from 1."""

    @property
    def domains(self) -> list[str]:
        """The domains of which at least one participant has training examples, in domain order."""

    @property
    def shares(self) -> Mapping[str, float]:
        """Weight of each source client of the run, by label, in a mean over all of them; the weights sum to 1."""

    def mean_update(
        self,
        domain_weights: Mapping[str, float] | None = None,
        *,
        given: Callable[[str], Mapping[str, Tensor]] | None = None,
        each: Callable[[ClientReply], object] | None = None,
        held_out: bool = False,
    ) -> dict[str, Tensor]:
        """Train all clients at once and average their updates.

        Args:
            domain_weights: Weights of the domains; None is the run's own weighting.
            given: Returns, for a client's label, additional references for that client.
            each: Called with every reply before it is averaged, in domain order.
            held_out: Whether each client evaluates the model that it trained, for :attr:`ClientReply.held_out`.
        """

    def train_domain(
        self, domain: str, position: Mapping[str, Tensor], *, momentum: Mapping[str, Tensor], name: str
    ) -> ClientUpdate | None:
        """Train the clients of one domain from the model ``position``, on their examples of that domain alone.

        Args:
            domain: The domain.
            position: Every tensor of the model they begin from.
            momentum: Momentum buffers that their optimizers begin with, by parameter; empty for fresh ones.
            name: Distinguishes this model from others of the round.

        Returns:
            Their update and momentum, averaged by examples, or None if all failed.
        """


class DomainStrategy:
    """Base of every strategy with both halves. On its own it is ERM: no statistics, no reference, no penalty.

    Attributes:
        statistics: What a client may be asked, by name: functions of a ``HeadBatch`` and of named tensors and scalars.
            A client answers only what its own copy of the strategy lists here. The server calls each on one blank
            example, features 0 and class 0; an answer must have the shape and dtype of the result.
        network_statistics: Likewise, functions of a whole ``Forward`` pass with its autograd graph. They return a flat
            tensor with as many values as the trained parameters have. They are not called on a blank example.
        schedule: Weight of the penalty over the run.
        limited: Whether the gradient of the weighted penalty is limited to the length of the loss's gradient; see
            :meth:`Step.limited`. The penalty must depend on features, head or both. The objective is then not
            divided by the weight: the limit serves the purpose of ``"rescale"``.
        least_batch: Examples of a domain that a batch needs for the penalty to act.
        bound_to_rounds: Whether what a round does depends on the run's number of rounds.
        state: What the server half remembers between rounds (moving averages and the like); saved in checkpoints. Its
            tensors are replaced and never written to.
    """

    statistics: ClassVar[Mapping[str, Statistic]] = {}
    network_statistics: ClassVar[Mapping[str, NetworkStatistic]] = {}
    schedule: PenaltySchedule = PenaltySchedule()
    limited: bool = False
    least_batch: int = 1
    bound_to_rounds: ClassVar[bool] = False

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Tensors by name, empty at the start of a run."""
        return {}

    def check(self, config: RunConfig) -> None:
        """Check, before anything runs, that the run's settings suit the strategy; by default that its penalty acts.

        Raises:
            UsageError: They do not suit it; by default, batches are too small or the weight would be 0 at every step.
        """
        if 0 < config.batch_size < self.least_batch and not self.schedule.is_off:
            raise UsageError(
                f"--strategy {config.strategy}: its penalty would be off throughout: expected batches of "
                f"{self.least_batch} examples or more, got --batch-size {config.batch_size}; give a larger one"
            )
        if not config.local_epochs:
            self.check_steps(config, config.rounds * config.local_steps)

    def check_steps(self, config: RunConfig, steps: int) -> None:
        """Check that the penalty begins within the ``steps`` local steps of the run.

        Raises:
            UsageError: The weight would be 0 at every step.
        """
        schedule = self.schedule
        if schedule.is_off or schedule.before > 0 or steps > schedule.anneal_steps:
            return
        raise UsageError(
            f"--strategy {config.strategy}: its penalty would be off throughout: the run takes {steps} local steps and "
            f"the penalty begins at step {schedule.anneal_steps}; set --strategy-args {config.strategy}.anneal_steps=N "
            f"with N < {steps}, or {config.strategy}.weight=0 for a run without penalty"
        )

    def check_model(self, model: HeadedModel) -> None:
        """Check, before anything runs, that the network has what the strategy needs; by default nothing.

        Raises:
            UsageError: The network lacks something that the strategy needs.
        """
        del model

    def auxiliary(self, model: HeadedModel) -> nn.Module | None:
        """Return modules that are trained, sent, averaged and kept in checkpoints with the network, or None for none.

        A step finds them as ``model.auxiliary``. Evaluations do not use them, and exported models have none.

        Args:
            model: The network. Random initial values are drawn from the run's seed.
        """
        del model
        return None

    def reference(self, ask: Ask) -> Reference:
        """Server half: exchange statistics with the source clients and return the references of the round.

        Args:
            ask: ``ask("name", **given)`` returns the statistic of every source domain; each call is one exchange.

        Returns:
            Tensors for every client, or values by domain, of which each client gets those of its own domains.
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
        """Combine loss and penalty: ``(L + w * penalty) / divisor`` with the schedule's weight w.

        With :attr:`limited` the objective is ``L + step.limited(w * penalty)``. If w is 0, it is L.

        Raises:
            UsageError: The penalty is not a tensor of shape (), or has no gradient.
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
        weighted = penalty if weight == 1.0 else weight * penalty
        if self.limited:
            return step.loss + step.limited(weighted)
        objective = step.loss + weighted
        return objective / divisor if divisor > 1.0 else objective

    def compute_gradient(self, step: LocalStep) -> None:
        """Client half: store the gradient of one local step in the parameters' ``grad``, which is None before.

        Args:
            step: The step. Its :meth:`LocalStep.backward` adds the gradient of the objective.
        """
        step.backward()

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Server half: have the clients train, and return the update that the server optimizer steps along.

        Args:
            phase: Sends the train messages: to all at once (:meth:`LocalTraining.mean_update`), or domain by domain.
            reference: What :meth:`reference` returned.

        Returns:
            The update, ``before - after`` by name; by default the mean over the clients.
        """
        del reference
        return phase.mean_update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of :attr:`state`."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.state.clear()
        self.state.update(state)
