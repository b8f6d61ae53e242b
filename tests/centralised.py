"""Slow, obvious, centralised versions of the algorithms: one process, all domains, autograd twice and nothing else."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.config import RunConfig
from fedhess.models.headed import HeadedModel
from fedhess.sampling import batch_indices

Batches = list[tuple[Tensor, Tensor]]
Objective = Callable[[HeadedModel, Batches], Tensor]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, or mean logistic loss for one logit."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def cross_entropy(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean loss of one domain's batch, from the model's own forward."""
    return loss_of(model(batch[0]), batch[1])


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


def irm_objective(weight: float, form: str) -> Objective:
    """Mean of L_e + w D_e with the dummy scale differentiated by autograd, as IRM's own code does."""

    def derivative(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = loss_of(scale * model(batch[0]), batch[1])
        return torch.autograd.grad(loss, scale, create_graph=True)[0]

    def penalty(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        if form == "squared":
            return derivative(model, batch) ** 2
        even, odd = ((batch[0][start::2], batch[1][start::2]) for start in (0, 1))
        return derivative(model, even) * derivative(model, odd)

    return lambda model, batches: torch.stack(
        [cross_entropy(model, batch) + weight * penalty(model, batch) for batch in batches]
    ).mean()


def vrex_objective(weight: float) -> Objective:
    """Mean of the losses plus the weighted mean of their squared deviations, nothing detached."""

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = torch.stack([cross_entropy(model, batch) for batch in batches])
        return losses.mean() + weight * ((losses - losses.mean()) ** 2).mean()

    return objective


def coral_objective(gamma: float) -> Objective:
    """DomainBed's form: the mean over pairs of domains of the squared gaps of means and covariances."""

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        features = [model.featurizer(inputs) for inputs, _ in batches]
        pairs = [(a, b) for index, a in enumerate(features) for b in features[index + 1 :]]
        gaps = [
            (a.mean(0) - b.mean(0)).pow(2).mean() + (torch.cov(a.T) - torch.cov(b.T)).pow(2).mean() for a, b in pairs
        ]
        losses = [cross_entropy(model, batch) for batch in batches]
        return torch.stack(losses).mean() + gamma * torch.stack(gaps).mean()

    return objective


def iga_objective(coefficient: float, *, form: str) -> Objective:
    """Mean of L_e, and lambda times sum or mean of ||grad L_e - mean||^2 over the whole network, nothing detached."""

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = [cross_entropy(model, batch) for batch in batches]
        parameters = list(model.parameters())
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
            for loss in losses
        ]
        mean = torch.stack(gradients).mean(0)
        squares = torch.stack([(g - mean).square().sum() for g in gradients])
        return torch.stack(losses).mean() + coefficient * (squares.sum() if form == "sum" else squares.mean())

    return objective


def fishr_objective(weight: float, ema: float) -> Objective:
    """DomainBed's form: per-example gradients one by one, moving averages over 1 - ema, mean squared entries."""
    past: dict[int, Tensor] = {}

    def variance(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        head = [model.head.weight, model.head.bias]
        rows = []
        for inputs, label in zip(*batch, strict=True):
            loss = cross_entropy(model, (inputs.unsqueeze(0), label.unsqueeze(0)))
            rows.append(matrix(torch.autograd.grad(loss, head, create_graph=True)))
        return torch.stack(rows).var(0, unbiased=False)

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        averages = []
        for index, batch in enumerate(batches):
            own = variance(model, batch)
            averages.append((ema * past.get(index, torch.zeros_like(own)) + (1 - ema) * own) / (1 - ema))
            past[index] = averages[-1].detach() * (1 - ema)
        mean = torch.stack(averages).mean(0)
        penalty = torch.stack([(average - mean).pow(2).mean() for average in averages]).mean()
        return erm_objective()(model, batches) + weight * penalty

    return objective


def fediir_objective(gamma: float, ema: float) -> Objective:
    """Mean of L_e + gamma ||g_e - r||^2 with r the moving average of the mean head gradient."""
    past: list[Tensor] = []

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = [cross_entropy(model, batch) for batch in batches]
        gradients = [gradient_and_hgp(model, loss)[0] for loss in losses]
        mean = torch.stack(gradients).mean(0).detach()
        past.append(mean if not past else ema * past[-1] + (1 - ema) * mean)
        terms = [loss + gamma * (g - past[-1]).square().sum() for loss, g in zip(losses, gradients, strict=True)]
        return torch.stack(terms).mean()

    return objective


def server_alignment_objective(step: float, lr: float) -> Objective:
    """ERM plus the variance of head gradients, whose gradient is taken in the head alone."""

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        features = [model.featurizer(inputs).detach() for inputs, _ in batches]
        losses = [loss_of(model.head(z), labels) for z, (_, labels) in zip(features, batches, strict=True)]
        gradients = torch.stack([gradient_and_hgp(model, loss)[0] for loss in losses])
        variance = (gradients - gradients.mean(0)).square().sum() / len(losses)
        return erm_objective()(model, batches) + step / lr * variance

    return objective


def groupdro_objective(eta: float) -> Objective:
    """GroupDRO's own loop: weights multiplied by exp(eta L), normalised, then the weighted sum of losses."""
    q: list[Tensor] = []

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = torch.stack([cross_entropy(model, batch) for batch in batches])
        before = q[-1] if q else torch.full((len(losses),), 1 / len(losses), dtype=losses.dtype)
        raised = before * (eta * losses.detach()).exp()
        q.append(raised / raised.sum())
        return torch.dot(q[-1], losses)

    return objective


def afl_objective(eta: float) -> Objective:
    """AFL: weights moved by eta L and projected onto the simplex by bisection on the shift."""
    q: list[Tensor] = []

    def project(point: Tensor) -> Tensor:
        low, high = point.min() - 1, point.max()
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (point - middle).clamp(min=0).sum() > 1 else (low, middle)
        return (point - high).clamp(min=0)

    def objective(model: HeadedModel, batches: Batches) -> Tensor:
        losses = torch.stack([cross_entropy(model, batch) for batch in batches])
        before = q[-1] if q else torch.full((len(losses),), 1 / len(losses), dtype=losses.dtype)
        q.append(project(before + eta * losses.detach()))
        return torch.dot(q[-1], losses)

    return objective


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


def train_fish(
    model: HeadedModel, domains: dict[str, tuple[Tensor, Tensor]], *, config: RunConfig, eps: float
) -> dict[str, Tensor]:
    """Fish's own loop: a clone takes one optimizer step a domain, the model moves eps of the way to it."""
    inner_state = None
    for step in range(config.rounds):
        clone = copy.deepcopy(model)
        inner = torch.optim.SGD(clone.parameters(), lr=config.lr, momentum=config.momentum)
        if inner_state is not None:
            inner.load_state_dict(inner_state)
        for name, (inputs, labels) in domains.items():
            key = (config.seed, name, 0)
            chosen = batch_indices(len(labels), batch_size=config.batch_size, step=step, key=key)
            inner.zero_grad()
            cross_entropy(clone, (inputs[chosen], labels[chosen])).backward()
            inner.step()
        inner_state = inner.state_dict()
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), clone.parameters(), strict=True):
                mine.add_(eps * (theirs - mine))
    return {name: value.detach() for name, value in model.state_dict().items()}
