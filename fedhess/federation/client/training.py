"""The client half of a round: local steps on the loss plus the strategy's penalty, and the update they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedhess.alignment.step import Forward, Step, round_steps, run_forward
from fedhess.alignment.strategy_code import strategy_code
from fedhess.federation.client.batches import BatchSource, joint_batches
from fedhess.models.headed import HeadedModel
from fedhess.settings.optimizers import client_optimizer
from fedhess.settings.run_config import RunConfig


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


@dataclass(frozen=True)
class Holding:
    """What a client trains on of one domain.

    Attributes:
        data: Its examples of the domain.
        weight: How much their objective weighs in the client's; those of a client add up to 1.
        reference: The references of the round for the domain; constants.
    """

    data: BatchSource
    weight: float = 1.0
    reference: Mapping[str, Tensor] = field(default_factory=dict)


def writes_parameters(config: RunConfig, *, carries_momentum: bool = False) -> bool:
    """Whether local training changes the parameters: not so for one step of SGD, see :func:`train_locally`.

    Args:
        config: The settings of the run.
        carries_momentum: Whether the step begins with momentum buffers from elsewhere; a fresh optimizer has none, and
            its first step is that of SGD without momentum.
    """
    one_step = config.local_steps == 1 and config.local_epochs == 0
    plain = config.client_optimizer == "SGD" and not (config.momentum and carries_momentum)
    return not (one_step and plain)


def train_locally(
    model: HeadedModel,
    holdings: Sequence[Holding],
    *,
    before: Mapping[str, Tensor],
    config: RunConfig,
    strategy: Objective,
    server_round: int,
    first: Forward | None = None,
    momentum: Mapping[str, Tensor] | None = None,
) -> LocalUpdate:
    """Take the round's local steps from the global model.

    One step of SGD is taken in exact form: the update is ``lr * (gradient + weight_decay * weights)`` itself.
    (Subtracting the new weights from the old would lose the low bits of small gradients, which an adaptive server
    optimizer makes large again.) Momentum counts from the second step on, or where buffers are carried.

    Args:
        model: The working model, loaded with the global one; its parameters are changed where
            :func:`writes_parameters` says so.
        holdings: The client's training data with the references of the round, by domain.
        before: The tensors of the global model, on the model's device.
        config: Steps, batch size, learning rate and the like.
        strategy: The client half of the strategy.
        server_round: Number of the round, from 1.
        first: The forward pass of the first step, where an exchange of the round has made it already.
        momentum: Momentum buffers to begin with, by parameter, on the model's device; they are written to.

    Returns:
        The update and the first step's losses.

    Raises:
        StrategyError: The strategy's own code raised.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = client_optimizer(
        config.client_optimizer,
        list(trained.values()),
        lr=config.lr_at(server_round),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    for name, buffer in (momentum or {}).items():
        optimizer.state[trained[name]]["momentum_buffer"] = buffer
    writes = writes_parameters(config, carries_momentum=momentum is not None)
    losses: list[Tensor] = []
    train_size = sum(holding.data.train_size for holding in holdings)
    indices = round_steps(config, train_size=train_size, server_round=server_round)
    batches = joint_batches([holding.data for holding in holdings], config, steps=indices[first is not None :])
    for local_step, index in enumerate(indices):
        forward = first if first is not None and local_step == 0 else None
        if forward is None:
            inputs, labels, sizes = next(batches)
            forward = run_forward(model, inputs, labels, sizes=sizes)
        steps = [
            Step(model, part, before, index, server_round, config.l2, own.data.key)
            for part, own in zip(forward.parts, holdings, strict=True)
        ]
        with strategy_code(config.strategy, "penalty", type(strategy)):
            terms = [strategy.objective(step, own.reference) for step, own in zip(steps, holdings, strict=True)]
        objective = _weighted(terms, holdings)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(objective)
        if local_step == 0:
            losses = [_weighted([step.loss for step in steps], holdings).detach(), objective.detach()]
        if writes:
            optimizer.step()
    update = _update(model, trained, before, config, lr=config.lr_at(server_round), writes=writes)
    optimizer.zero_grad(set_to_none=True)
    buffers = {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in trained.items()}
    if all(buffer is None for buffer in buffers.values()):
        buffers = {}
    kept = {name: torch.zeros_like(trained[name]) if buffer is None else buffer for name, buffer in buffers.items()}
    return LocalUpdate(update, loss=float(losses[0]), objective=float(losses[1]), momentum=kept)


def _weighted(terms: Sequence[Tensor], holdings: Sequence[Holding]) -> Tensor:
    """Add up what a client has of each domain by its weight; of a single domain it is that itself."""
    if len(terms) == 1:
        return terms[0]
    return torch.stack([own.weight * term for term, own in zip(terms, holdings, strict=True)]).sum()


@torch.no_grad()
def _update(
    model: HeadedModel,
    trained: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    config: RunConfig,
    *,
    lr: float,
    writes: bool,
) -> dict[str, Tensor]:
    """Return ``before - after`` of the trained parameters, then of the buffers."""
    update: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        if writes:
            update[name] = before[name] - parameter
        elif parameter.grad is None:
            update[name] = torch.zeros_like(parameter)
        else:
            gradient = parameter.grad
            if config.weight_decay:
                gradient = gradient.add_(parameter, alpha=config.weight_decay)
            update[name] = gradient.mul_(lr) if lr != 1.0 else gradient
    for name, buffer in model.named_buffers():
        if name in before:
            update[name] = before[name] - buffer
    return update
