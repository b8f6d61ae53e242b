"""The client half of a round: local steps on the loss plus the strategy's penalty, and the update they make."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedhess import autodiff
from fedhess.augmentation import augment
from fedhess.autodiff import ModuleBatch
from fedhess.config import RunConfig, Scalar
from fedhess.curvature import HeadBatch
from fedhess.models.headed import HeadedModel
from fedhess.optimizers import client_optimizer
from fedhess.penalties import HeadTerms, head_objective
from fedhess.sampling import batch_indices, seeded_generator, steps_per_pass
from fedhess.statistics import Forward, Statistic, compute_statistic, run_forward


@dataclass
class Step:
    """What a strategy's penalty sees of one local step.

    Attributes:
        model: The client's working model, in training mode.
        forward: The step's batch: inputs, labels, features (part of the autograd graph), and these with the head.
        before: The tensors of the global model, which the round began from.
        index: Number of the step since the beginning of the run, from 0.
        server_round: Number of the round, from 1.
        l2: Coefficient of the sum of squared parameters that is part of the loss.
    """

    model: HeadedModel
    forward: Forward
    before: Mapping[str, Tensor]
    index: int
    server_round: int
    l2: float = 0.0
    _loss: Tensor | None = field(default=None, repr=False)

    @property
    def features(self) -> Tensor:
        """Features of the step's batch, (B, D), part of the autograd graph."""
        return self.forward.features

    @property
    def labels(self) -> Tensor:
        """Class indices of the step's batch, (B,)."""
        return self.forward.labels

    @property
    def logits(self) -> Tensor:
        """Logits of the step's batch, (B, C) or (B, 1), part of the autograd graph."""
        logits: Tensor = self.model.head(self.forward.features)
        return logits

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def batch(self) -> HeadBatch | ModuleBatch:
        """Features and labels of the step's batch with the head."""
        return self.forward.batch

    @property
    def loss(self) -> Tensor:
        """The client's own loss L_e, (): mean cross-entropy (logistic for one logit), plus the L2 term if any."""
        if self._loss is None:
            self._loss = self.batch.loss
        if self.l2 == 0.0:
            return self._loss
        squares = torch.stack([parameter.square().sum() for parameter in self.trained.values()]).sum()
        return self._loss + self.l2 * squares

    def statistic(self, function: Statistic, **given: Tensor | Scalar) -> Tensor:
        """Compute a head statistic of this step's batch, part of the autograd graph."""
        return compute_statistic(function, self.batch, **given)

    def distances(self, *, gradient: Tensor | None = None, hgp: Tensor | None = None) -> HeadTerms:
        """Compute ||g - gradient||^2 and ||H[g] - hgp||^2 in one pass with the loss, which :attr:`loss` then reuses."""
        if isinstance(self.batch, HeadBatch):
            terms = head_objective(self.batch, gradient=gradient, hgp=hgp)
        else:
            terms = autodiff.head_objective(self.batch, gradient=gradient, hgp=hgp)
        self._loss = terms.loss
        return terms


class Objective(Protocol):
    """The client half of a strategy, as the local steps need it."""

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Compute what the client minimises, ()."""


@dataclass
class LocalUpdate:
    """What a client's local steps made.

    Attributes:
        update: ``before - after`` by name: trained parameters, then buffers; the pseudo-gradient of the server.
        loss: The loss L_e at the first step, on its batch.
        objective: The objective at the first step.
        momentum: The momentum buffers that the optimizer ended with, by parameter; none for plain SGD.
    """

    update: dict[str, Tensor]
    loss: float
    objective: float
    momentum: dict[str, Tensor]


class BatchSource(Protocol):
    """Where the batches of a client come from."""

    @property
    def train_size(self) -> int:
        """Number of training examples."""

    @property
    def key(self) -> tuple[str | int, ...]:
        """What names the client's stream of batches: (seed, domain, client)."""

    def train_batches(self, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches of training examples by position: inputs and labels on the model's device."""

    def train_aspects(self, positions: Tensor) -> Tensor | None:
        """Give width by height of training images before they were resized, or None where that is unknown."""


def step_batches(data: BatchSource, config: RunConfig, *, steps: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Fetch and augment the batches of several steps, one after the other.

    A step always sees the same batch, whether a statistic or an update is computed from it.

    Args:
        data: The client's data.
        config: Gives the batch size and the augmentation.
        steps: Numbers of the steps since the beginning of the run, from 0.
    """
    positions = [
        batch_indices(
            data.train_size,
            batch_size=config.batch_size,
            step=step,
            key=data.key,
            keeps_rest=config.local_epochs > 0,
        )
        for step in steps
    ]
    for step, chosen, (inputs, labels) in zip(steps, positions, data.train_batches(positions), strict=True):
        if config.augment == "none":
            yield inputs, labels
        else:
            generator = seeded_generator(*data.key, "augmentation", step)
            yield augment(inputs, generator=generator, aspects=data.train_aspects(chosen)), labels


def round_batch(data: BatchSource, config: RunConfig, *, step: int, batches: int = 1) -> tuple[Tensor, Tensor]:
    """Fetch the batch of a step, or the union of the batches of several steps beginning there.

    Args:
        data: The client's data.
        config: Gives the batch size.
        step: Number of the step since the beginning of the run, from 0.
        batches: How many consecutive batches are taken together (the statistics of a round may want more than one).
    """
    if config.batch_size == 0:
        batches = 1
    parts = list(step_batches(data, config, steps=range(step, step + batches)))
    if batches == 1:
        return parts[0]
    inputs, labels = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def round_steps(config: RunConfig, *, train_size: int, server_round: int) -> range:
    """Number the steps that a client takes in a round, counted from 0 since the beginning of the run.

    ``local_steps`` each round; or, with ``local_epochs``, as many as so many passes over its own examples take, the
    last partial batch of a pass included: ``local_epochs * ceil(N / B)``, which differs from client to client.

    Args:
        config: Gives steps or epochs, and the batch size.
        train_size: Number of the client's training examples N.
        server_round: Number of the round, from 1.
    """
    each = config.local_steps
    if config.local_epochs:
        each = config.local_epochs * steps_per_pass(train_size, batch_size=config.batch_size, keeps_rest=True)
    return range((server_round - 1) * each, server_round * each)


def writes_parameters(config: RunConfig) -> bool:
    """Whether local training changes the parameters: not so for one step of plain SGD, see :func:`train_locally`."""
    one_step = config.local_steps == 1 and config.local_epochs == 0
    plain = config.client_optimizer == "SGD" and config.momentum == 0 and config.weight_decay == 0
    return not (one_step and plain)


def train_locally(
    model: HeadedModel,
    data: BatchSource,
    *,
    before: Mapping[str, Tensor],
    config: RunConfig,
    strategy: Objective,
    reference: Mapping[str, Tensor],
    server_round: int,
    first: Forward | None = None,
    momentum: Mapping[str, Tensor] | None = None,
) -> LocalUpdate:
    """Take the round's local steps from the global model.

    One step of plain SGD is taken in exact form: the update is ``lr * gradient`` itself. (Subtracting the new weights
    from the old would lose the low bits of small gradients, which an adaptive server optimizer makes large again.)

    Args:
        model: The working model, loaded with the global one; its parameters are changed where
            :func:`writes_parameters` says so.
        data: The client's training data.
        before: The tensors of the global model.
        config: Steps, batch size, learning rate and the like.
        strategy: The client half of the strategy.
        reference: The references of the round; constants.
        server_round: Number of the round, from 1.
        first: The forward pass of the first step, where an exchange of the round has made it already.
        momentum: Momentum buffers to begin with, by parameter.

    Returns:
        The update and the first step's losses.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = client_optimizer(
        config.client_optimizer,
        list(trained.values()),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    for name, buffer in (momentum or {}).items():
        optimizer.state[trained[name]]["momentum_buffer"] = buffer.to(trained[name].device, copy=True)
    losses: list[Tensor] = []
    steps = round_steps(config, train_size=data.train_size, server_round=server_round)
    batches = step_batches(data, config, steps=steps[first is not None :])
    for local_step, index in enumerate(steps):
        forward = first if first is not None and local_step == 0 else run_forward(model, *next(batches))
        step = Step(model, forward, before, index, server_round, config.l2)
        objective = strategy.objective(step, reference)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(objective)
        if local_step == 0:
            losses = [step.loss.detach(), objective.detach()]
        if writes_parameters(config):
            optimizer.step()
    update = _update(model, trained, before, config)
    optimizer.zero_grad(set_to_none=True)
    buffers = {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in trained.items()}
    kept = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return LocalUpdate(update, loss=float(losses[0]), objective=float(losses[1]), momentum=kept)


@torch.no_grad()
def _update(
    model: HeadedModel, trained: Mapping[str, Tensor], before: Mapping[str, Tensor], config: RunConfig
) -> dict[str, Tensor]:
    """Return ``before - after`` of the trained parameters, then of the buffers."""
    update: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        if writes_parameters(config):
            update[name] = before[name].to(parameter.device) - parameter
        else:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            update[name] = gradient.mul_(config.lr) if config.lr != 1.0 else gradient
    for name, buffer in model.named_buffers():
        if name in before:
            update[name] = before[name].to(buffer.device) - buffer
    return update
