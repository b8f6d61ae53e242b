"""The client half of a round: local steps on the loss plus the strategy's penalty, and the update they make."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedhess.alignment.step import Forward, LocalStep, Step, round_steps
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.users_code import users_code
from fedhess.federation.client.batches import examples_in_answers, joint_batches
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain
from fedhess.settings.optimizers import client_optimizer
from fedhess.settings.run_config import RunConfig


@dataclass
class LocalUpdate:
    """Result of a client's local steps: ``before - after`` of parameters, then of buffers; and the first step's losses.

    ``momentum`` holds the final momentum buffers of the optimizer by parameter; it is empty for plain SGD.
    """

    update: dict[str, Tensor]
    loss: float
    objective: float
    momentum: dict[str, Tensor]


@dataclass(frozen=True)
class Holding:
    """A client's training data of one domain: examples, their weight in the objective, and the round's references.

    The weights of a client's domains add up to 1; references are constants.
    """

    data: LocalDomain
    weight: float = 1.0
    reference: Mapping[str, Tensor] = field(default_factory=dict)


def writes_parameters(config: RunConfig, *, carries_momentum: bool = False) -> bool:
    """Whether local training changes the parameters; one step of SGD does not, see :func:`train_locally`.

    One step with momentum does only if it begins with carried buffers, since those of a fresh optimizer are zero.
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
    strategy: DomainStrategy,
    server_round: int,
    first: Forward | None = None,
    seeded: Callable[[], AbstractContextManager[None]] = nullcontext,
    momentum: Mapping[str, Tensor] | None = None,
) -> LocalUpdate:
    """Take the round's local steps from the global model.

    One step of SGD is taken in exact form: the update is ``lr * (gradient + weight_decay * weights)`` itself.
    (Subtracting the new weights from the old would lose the low bits of small gradients, which an adaptive server
    optimizer makes large again.) Momentum has an effect from the second step on, or if buffers are carried.

    Args:
        model: The working model, loaded with the global one; its parameters are changed where
            :func:`writes_parameters` is true.
        holdings: The client's training data with the references of the round, by domain.
        before: The tensors of the global model, on the model's device.
        config: Steps, batch size, learning rate and the like.
        strategy: The strategy, for its ``objective`` and ``compute_gradient``.
        server_round: Number of the round, from 1.
        first: The forward pass of the first step, if an exchange of the round has already computed it.
        seeded: Context in which that pass is computed if ``first`` is None.
        momentum: Momentum buffers to begin with, by parameter, on the model's device; they are written to.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    lr, decay = config.client_rate.at(server_round), config.weight_decay
    optimizer = client_optimizer(
        config.client_optimizer, list(trained.values()), lr=lr, momentum=config.momentum, weight_decay=decay
    )
    for name, buffer in (momentum or {}).items():
        optimizer.state[trained[name]]["momentum_buffer"] = buffer
    writes = writes_parameters(config, carries_momentum=momentum is not None)
    recorded: Tensor | None = None
    train_size = sum(holding.data.train_size for holding in holdings)
    indices = round_steps(config, train_size=train_size, server_round=server_round)
    parts = [holding.data for holding in holdings]
    batches = joint_batches(parts, config, steps=indices[first is not None :])
    in_answers = dict(zip(indices, examples_in_answers(parts, config, steps=indices), strict=True))

    def objective(forward: Forward, index: int) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of a pass, and the weighted loss with penalties."""
        steps = [
            Step(model, part, before, index, server_round, config.l2, own.data.key, examples)
            for part, own, examples in zip(forward.parts, holdings, in_answers[index], strict=True)
        ]
        with users_code(f"strategy {config.strategy!r}", "penalty", type(strategy)):
            terms = [strategy.objective(step, own.reference) for step, own in zip(steps, holdings, strict=True)]
            for term in terms:
                if not isinstance(term, Tensor) or term.dim() > 0:
                    got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
                    raise TypeError(f"objective: expected a tensor of a single number, shape (), got {got}")
        return _weighted([step.loss for step in steps], holdings), _weighted(terms, holdings)

    for index in indices:
        batch = next(batches) if first is None else first.taken
        step = LocalStep(model, batch, partial(objective, index=index), index, holdings[0].data.key, first, seeded)
        first, seeded = None, nullcontext
        optimizer.zero_grad(set_to_none=True)
        with users_code(f"strategy {config.strategy!r}", "step", type(strategy), calls=LocalStep):
            strategy.compute_gradient(step)
            if step.recorded is None:
                raise TypeError("compute_gradient: expected it to call step.backward(), which adds the gradients")
        recorded = step.recorded if recorded is None else recorded
        if writes:
            optimizer.step()
    with torch.no_grad():
        update = _differences(before, trained) if writes else _step_of_sgd(trained, config, lr)
        update |= _differences(before, {name: own for name, own in model.named_buffers() if name in before})
    optimizer.zero_grad(set_to_none=True)
    buffers = {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in trained.items()}
    if all(buffer is None for buffer in buffers.values()):
        buffers = {}
    kept = {name: torch.zeros_like(trained[name]) if buffer is None else buffer for name, buffer in buffers.items()}
    assert recorded is not None, "a round has a step"
    loss, whole = recorded.tolist()
    return LocalUpdate(update, loss=loss, objective=whole, momentum=kept)


def _weighted(terms: Sequence[Tensor], holdings: Sequence[Holding]) -> Tensor:
    """Return the weighted sum of a client's terms over its domains; a single term is returned as it is."""
    if len(terms) == 1:
        return terms[0]
    return torch.stack([own.weight * term for term, own in zip(terms, holdings, strict=True)]).sum()


def _differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: before[name] - value for name, value in after.items()}


def _step_of_sgd(trained: Mapping[str, Tensor], config: RunConfig, lr: float) -> dict[str, Tensor]:
    """Return ``lr * (gradient + weight_decay * weights)`` of the trained parameters, in place of their gradients."""
    update = {}
    for name, parameter in trained.items():
        gradient = parameter.grad
        if gradient is None:
            update[name] = torch.zeros_like(parameter)
            continue
        if config.weight_decay:
            gradient.add_(parameter, alpha=config.weight_decay)
        update[name] = gradient.mul_(lr) if lr != 1.0 else gradient
    return update
