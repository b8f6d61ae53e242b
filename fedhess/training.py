"""The client half of a round: local steps on the loss plus the strategy's penalty, and the update they make."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from fedhess import autodiff
from fedhess.autodiff import ModuleBatch
from fedhess.config import RunConfig, Scalar
from fedhess.curvature import HeadBatch
from fedhess.models.headed import HeadedModel
from fedhess.penalties import HeadTerms, head_objective
from fedhess.sampling import batch_indices


class Statistic(Protocol):
    """A function of a head batch that a client may be asked for, such as :func:`fedhess.curvature.head_gradient`."""

    def __call__(self, batch: HeadBatch, /, **given: Tensor | Scalar) -> Tensor:
        """Compute the statistic."""


def head_batch(model: HeadedModel, features: Tensor, labels: Tensor) -> HeadBatch | ModuleBatch:
    """Pair features with the head: closed forms for a linear head, automatic differentiation for any other."""
    head = model.head
    if isinstance(head, nn.Linear):
        return HeadBatch(features, labels, head.weight, head.bias)
    return ModuleBatch(features, labels, head)


def compute_statistic(function: Statistic, batch: HeadBatch | ModuleBatch, **given: Tensor | Scalar) -> Tensor:
    """Evaluate a statistic of the head, by its automatic counterpart where the head is not linear.

    Args:
        function: The statistic, a function of a ``HeadBatch``.
        batch: The head batch.
        **given: Tensors and scalars; the function is given those it has a parameter for.

    Raises:
        ValueError: The head is not linear and the statistic has no automatic counterpart.
    """
    accepted = {name: value for name, value in given.items() if name in _parameter_names(function)}
    if isinstance(batch, HeadBatch):
        return function(batch, **accepted)
    counterpart = autodiff.EQUIVALENT.get(function)
    if counterpart is None:
        raise ValueError(f"{getattr(function, '__name__', function)} needs a linear head (torch.nn.Linear)")
    result: Tensor = counterpart(batch, **accepted)
    return result


@lru_cache(maxsize=256)
def _parameter_names(function: Statistic) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@dataclass
class Step:
    """What a strategy's penalty sees of one local step.

    Attributes:
        model: The client's working model, in training mode.
        inputs: (B, ...) inputs of the step's batch.
        labels: (B,) class indices.
        features: (B, D) features, part of the autograd graph.
        batch: The features with labels and head.
        index: Number of the step since the beginning of the run, from 0.
        server_round: Number of the round, from 1.
        l2: Coefficient of the sum of squared parameters that is part of the loss.
    """

    model: HeadedModel
    inputs: Tensor
    labels: Tensor
    features: Tensor
    batch: HeadBatch | ModuleBatch
    index: int
    server_round: int
    l2: float = 0.0
    _loss: Tensor | None = field(default=None, repr=False)

    @property
    def loss(self) -> Tensor:
        """The client's own loss L_e, (): mean cross-entropy (logistic for one logit), plus the L2 term if any."""
        loss = self.batch.loss if self._loss is None else self._loss
        if self.l2 == 0.0:
            return loss
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return loss + self.l2 * torch.stack([parameter.square().sum() for parameter in trained]).sum()

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
    """

    update: dict[str, Tensor]
    loss: float
    objective: float


class BatchSource(Protocol):
    """Where the batches of a client come from."""

    @property
    def train_size(self) -> int:
        """Number of training examples."""

    @property
    def key(self) -> tuple[str | int, ...]:
        """What names the client's stream of batches: (seed, domain, client)."""

    def train_batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch training examples by position: inputs and labels on the model's device."""


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
    positions = [
        batch_indices(data.train_size, batch_size=config.batch_size, step=step + offset, key=data.key)
        for offset in range(batches)
    ]
    return data.train_batch(positions[0] if batches == 1 else torch.cat(positions))


def train_locally(
    model: HeadedModel,
    data: BatchSource,
    *,
    config: RunConfig,
    strategy: Objective,
    reference: Mapping[str, Tensor],
    server_round: int,
) -> LocalUpdate:
    """Take the round's local steps from the global model.

    One step of plain SGD is taken in exact form: the update is ``lr * gradient`` itself. (Subtracting the new weights
    from the old would lose the low bits of small gradients, which an adaptive server optimizer makes large again.)

    Args:
        model: The working model, loaded with the global one; it is changed.
        data: The client's training data.
        config: Steps, batch size, learning rate and the like.
        strategy: The client half of the strategy.
        reference: The references of the round; constants.
        server_round: Number of the round, from 1.

    Returns:
        The update and the first step's losses.
    """
    model.train()
    exact = config.local_steps == 1 and config.momentum == 0 and config.weight_decay == 0
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = {name: value.detach() for name, value in model.state_dict().items() if name not in frozen}
    before = {name: value.clone() for name, value in state.items() if not (exact and name in trained)}
    optimizer = torch.optim.SGD(
        list(trained.values()), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    losses: list[Tensor] = []
    for local_step in range(config.local_steps):
        index = (server_round - 1) * config.local_steps + local_step
        inputs, labels = round_batch(data, config, step=index)
        features = model.features(inputs)
        step = Step(
            model, inputs, labels, features, head_batch(model, features, labels), index, server_round, config.l2
        )
        objective = strategy.objective(step, reference)
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        if local_step == 0:
            losses = [step.loss.detach(), objective.detach()]
        if not exact:
            optimizer.step()
    update = {name: value - state[name] for name, value in before.items() if name not in trained}
    for name, parameter in trained.items():
        if exact:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            update[name] = gradient.mul_(config.lr) if config.lr != 1.0 else gradient
        else:
            update[name] = before[name].sub_(state[name])
    optimizer.zero_grad(set_to_none=True)
    return LocalUpdate(update, loss=float(losses[0]), objective=float(losses[1]))
