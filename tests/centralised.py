"""Slow, obvious, centralised versions of the algorithms: one process, all domains, autograd twice and nothing else."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.config import RunConfig
from fedhess.models.headed import HeadedModel
from fedhess.sampling import batch_indices

Batches = list[tuple[Tensor, Tensor]]
Objective = Callable[[HeadedModel, Batches], Tensor]


def cross_entropy(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean loss of one domain's batch, from the model's own forward."""
    logits = model(batch[0])
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), batch[1].to(logits.dtype))
    return functional.cross_entropy(logits, batch[1])


def matrix(parts: tuple[Tensor, ...]) -> Tensor:
    """Weight and bias gradients as one (C, K) matrix."""
    return torch.cat([parts[0], parts[1].unsqueeze(1)], dim=1)


def gradient_and_hgp(model: HeadedModel, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The head gradient of a loss, and its head Hessian times that gradient, both differentiable again."""
    head = [model.head.weight, model.head.bias]
    gradient = torch.autograd.grad(loss, head, create_graph=True)
    product = torch.autograd.grad(gradient, head, grad_outputs=gradient, create_graph=True)
    return matrix(gradient), matrix(product)


def hessian_diagonal(model: HeadedModel, loss: Tensor) -> Tensor:
    """The diagonal of the head Hessian, every row of which is a double backward, differentiable again."""
    head = [model.head.weight, model.head.bias]
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, head, create_graph=True)])
    unit_vectors = torch.eye(flat.numel(), dtype=flat.dtype)
    rows = torch.autograd.grad(flat, head, grad_outputs=unit_vectors, is_grads_batched=True, create_graph=True)
    hessian = torch.cat([part.flatten(1) for part in rows], dim=1)
    weights, biases = hessian.diagonal().split([head[0].numel(), head[1].numel()])
    return matrix((weights.view_as(head[0]), biases))


def hgp_objective(alpha: float, beta: float, form: str) -> Objective:
    """Mean over domains of L_e + alpha ||H_e g_e - h||^2 + beta ||g_e - g||^2 with detached references.

    ``hgp_of_mean`` takes the reference from the mean loss itself, as the released code does.
    """

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = [cross_entropy(model, batch) for batch in batches]
        pairs = [gradient_and_hgp(model, loss) for loss in losses]
        mean_gradient, hgp_of_mean = gradient_and_hgp(model, torch.stack(losses).mean())
        mean_of_hgp = torch.stack([product for _, product in pairs]).mean(0)
        reference = (hgp_of_mean if form == "hgp_of_mean" else mean_of_hgp).detach()
        terms = [
            loss + alpha * (product - reference).square().sum() + beta * (g - mean_gradient.detach()).square().sum()
            for loss, (g, product) in zip(losses, pairs, strict=True)
        ]
        return torch.stack(terms).mean()

    return objective


def hutchinson_objective(alpha: float, beta: float) -> Objective:
    """Mean over domains of L_e + alpha ||diag H_e - d||^2 + beta ||g_e - g||^2 with detached references."""

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = [cross_entropy(model, batch) for batch in batches]
        gradients = [gradient_and_hgp(model, loss)[0] for loss in losses]
        diagonals = [hessian_diagonal(model, loss) for loss in losses]
        mean_gradient = torch.stack(gradients).mean(0).detach()
        mean_diagonal = torch.stack(diagonals).mean(0).detach()
        terms = [
            loss + alpha * (d - mean_diagonal).square().sum() + beta * (g - mean_gradient).square().sum()
            for loss, g, d in zip(losses, gradients, diagonals, strict=True)
        ]
        return torch.stack(terms).mean()

    return objective


def erm_objective() -> Objective:
    """Mean over domains of L_e."""
    return lambda model, batches: torch.stack([cross_entropy(model, batch) for batch in batches]).mean()


def train_centrally(
    model: HeadedModel,
    domains: dict[str, tuple[Tensor, Tensor]],
    *,
    config: RunConfig,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Train one model on all domains at once, a batch of each domain a step; return its tensors."""
    for step in range(config.rounds):
        batches: Batches = []
        for name, (inputs, labels) in domains.items():
            key = (config.seed, name, 0)
            chosen = batch_indices(len(labels), batch_size=config.batch_size, step=step, key=key)
            batches.append((inputs[chosen], labels[chosen]))
        optimizer.zero_grad()
        objective(model, batches).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}
