"""Slow, obvious versions of what a federation does in rounds of several local steps: plain loops over plain copies."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from centralised import (
    Domains,
    Pulls,
    Round,
    batch_of,
    penalty_of,
    rounds_of,
    squares_of,
    tensors_of,
)
from domain_statistics import Batch, cross_entropy, loss_of
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

# What a client steps along, (P,), given its model and its objective of a model.
Slope = Callable[[HeadedModel, Callable[[HeadedModel], Tensor]], Tensor]
# Of the ways that the clients' parameters went, (P,) each, what the server steps along.
Merge = Callable[[Round, Sequence[Tensor]], Tensor]


def train_in_rounds(
    model: HeadedModel,
    domains: Domains,
    *,
    config: RunConfig,
    pulls: Pulls = lambda _: [],
    weight: Callable[[int], float] = lambda _: 1.0,
    merge: Merge | None = None,
    slope: Slope | None = None,
) -> dict[str, Tensor]:
    """Federated averaging in a plain loop: each domain trains a copy, the server steps along the mean of what they did.

    Or along what ``merge`` makes of the ways that they went, with steps along what ``slope`` makes of an objective. The
    references are taken at the round's model on the batch
    of its first step, and stay for all steps of the round. The pulls have a weight by the number of the step; one above
    1 divides the objective.
    """
    server = getattr(torch.optim, config.server_optimizer)(model.parameters(), lr=config.server_lr)
    for now in rounds_of(domains, config):
        terms = [(pull, pull.target(model, now)) for pull in pulls(now)]
        copies = [copy.deepcopy(model) for _ in now.batches]
        for name, own in zip(now.batches, copies, strict=True):
            options = {"lr": config.client_rate.at(now.number), "weight_decay": config.weight_decay}
            options |= {"momentum": config.momentum} if config.client_optimizer == "SGD" else {}
            client = getattr(torch.optim, config.client_optimizer)(own.parameters(), **options)
            for step in range((now.number - 1) * config.local_steps, now.number * config.local_steps):
                batch = batch_of(domains, name, config, step)
                share = now.share_of(name, len(batch[1]), stands_for=stands_for(now.held[name], config, step))
                penalty = partial(penalty_of, batch=batch, terms=terms, share=share)
                objective = partial(objective_of, batch=batch, penalty=penalty, l2=config.l2, weight=weight(step))
                step_along(own, client, (slope or slope_of)(own, objective))
        start = parameters_to_vector(model.parameters()).detach()
        ways = [parameters_to_vector(own.parameters()).detach() - start for own in copies]
        server.param_groups[0]["lr"] = config.server_rate.at(now.number)
        step_along(model, server, -(merge or Round.mean)(now, ways))
    return tensors_of(model)


def stands_for(held: int, config: RunConfig, step: int) -> float:
    """How many of the examples that a client holds the batch of a step stands for in the references of the round."""
    size, first = config.batch_size or held, step - step % config.local_steps
    if step - first < config.statistics_batches:
        return held / config.statistics_batches
    pass_of = [number // (held // size) for number in (first, step)]
    return size if pass_of[0] < pass_of[1] else 0.0


def train_fish(model: HeadedModel, domains: Domains, *, config: RunConfig, eps: float) -> dict[str, Tensor]:
    """Fish's own loop: a clone takes one optimizer step a domain, the model moves eps of the way to it."""
    inner_state = None
    for now in rounds_of(domains, config):
        clone = copy.deepcopy(model)
        inner = torch.optim.SGD(clone.parameters(), lr=config.lr, momentum=config.momentum)
        if inner_state is not None:
            inner.load_state_dict(inner_state)
        for batch in now.batches.values():
            inner.zero_grad()
            (cross_entropy(clone, batch) + config.l2 * squares_of(clone)).backward()
            inner.step()
        inner_state = inner.state_dict()
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), clone.parameters(), strict=True):
                mine.add_(eps * (theirs - mine))
    return tensors_of(model)


def objective_of(
    model: HeadedModel, *, batch: Batch, penalty: Callable[[HeadedModel], Tensor], l2: float, weight: float
) -> Tensor:
    """A client's objective, divided by the weight of its penalty where that is above 1."""
    loss = cross_entropy(model, batch) + l2 * squares_of(model)
    return (loss + weight * penalty(model)) / max(1.0, weight)


def step_along(model: HeadedModel, server: torch.optim.Optimizer, direction: Tensor) -> None:
    """Have the server's optimizer step against a direction, (P,)."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    for parameter, part in zip(model.parameters(), direction.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    server.step()


# -- Steps along another gradient --------------------------------------------------------------------------------------


def slope_of(model: HeadedModel, objective: Callable[[HeadedModel], Tensor], *, move: Tensor | None = None) -> Tensor:
    """The gradient of an objective, (P,), where the parameters are or a move away."""
    place = model if move is None else copy.deepcopy(model)
    if move is not None:
        vector_to_parameters(parameters_to_vector(model.parameters()).detach() + move, place.parameters())
    return parameters_to_vector(torch.autograd.grad(objective(place), list(place.parameters())))


def sam_slope(rho: float, eta: float | None = None) -> Slope:
    """The gradient at w + rho T T g / ||T g||, T = 1, or |w| + eta of weights and 1 of biases."""

    def slope(model: HeadedModel, objective: Callable[[HeadedModel], Tensor]) -> Tensor:
        parts = [
            torch.ones_like(p) if eta is None or name.endswith("bias") else p.detach().abs() + eta
            for name, p in model.named_parameters()
        ]
        scale = parameters_to_vector(parts)
        scaled = scale * slope_of(model, objective)
        return slope_of(model, objective, move=rho * scale * scaled / scaled.norm())

    return slope


def sagm_slope(rho: float, alpha: float) -> Slope:
    """The mean of the gradients at w and at w + (rho / ||g|| - alpha) g."""

    def slope(model: HeadedModel, objective: Callable[[HeadedModel], Tensor]) -> Tensor:
        here = slope_of(model, objective)
        return (here + slope_of(model, objective, move=(rho / here.norm() - alpha) * here)) / 2

    return slope


# -- Servers that look at every client's way ---------------------------------------------------------------------------


def masked(tau: float) -> Merge:
    """FedGMA: the mean way, by coordinate times its agreement where that is below tau."""

    def merge(now: Round, ways: Sequence[Tensor]) -> Tensor:
        agreement = now.mean(way.sign() for way in ways).abs()
        return now.mean(ways) * torch.where(agreement < tau, agreement, 1.0)

    return merge


def matched(k: float) -> Merge:
    """FedOMG's release: CAGrad over p_e D_e with its SGD written out; the whole times E, see the strategy."""

    def merge(now: Round, ways: Sequence[Tensor]) -> Tensor:
        gradients = torch.stack([weight * way for weight, way in zip(now.weights.values(), ways, strict=True)])
        gram = gradients @ gradients.T
        gram = gram / (gram.diag() + 1e-4).sqrt().mean().square()
        c, count = k * (gram.mean() + 1e-4).sqrt(), len(ways)
        v, speed, tried = torch.zeros(count).double(), torch.zeros(count).double(), []
        for _ in range(21):
            at = v.clone().requires_grad_()
            u = at.softmax(0)
            value = (u * gram.mean(1)).sum() + c * (u @ gram @ u + 1e-4).sqrt()
            tried.append((value.item(), u.detach()))
            speed = 0.5 * speed + torch.autograd.grad(value, at)[0]
            v = v - 25 * speed
        u = min(tried, key=lambda pair: pair[0])[1]
        length = c / ((u @ gram @ u + 1e-4).sqrt() + 1e-4)
        return count * ((1 / count + u * length).unsqueeze(1) * gradients).sum(0) / (1 + k**2)

    return merge


def train_adjusted(
    model: HeadedModel, domains: Domains, *, config: RunConfig, s: float, measure: str
) -> dict[str, Tensor]:
    """GA in a plain loop over its rounds, counted from 0: train, measure, average by a, measure, move a."""
    weights, before = dict.fromkeys(domains, 1 / len(domains)), dict[str, float]()

    def value(of: HeadedModel, name: str) -> float:
        logits, labels = of(domains[name][0]).detach(), domains[name][1]
        if measure == "loss":
            return float(loss_of(logits, labels))
        guesses = (logits > 0).flatten() if logits.shape[1] == 1 else logits.argmax(1)
        return float((guesses == labels).double().mean())

    def merge(now: Round, ways: Sequence[Tensor]) -> Tensor:
        nonlocal weights, before
        i, start = now.number - 2, parameters_to_vector(model.parameters()).detach()
        gaps = {name: value(model, name) - before[name] for name in now.batches if name in before}
        if any(gaps.values()):
            for name, gap in gaps.items():
                d = s - (i - 1) * s / config.rounds
                change = (-1 if measure == "accuracy" else 1) * gap / max(map(abs, gaps.values())) * d / len(domains)
                weights[name] = min(1, max(0, weights[name] + change))
            weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        before = {}
        for name, way in zip(now.batches, ways, strict=True):
            own = copy.deepcopy(model)
            vector_to_parameters(start + way, own.parameters())
            before[name] = value(own, name)
        shares = [weights[name] for name in now.batches]
        return torch.stack([share * way for share, way in zip(shares, ways, strict=True)]).sum(0) / sum(shares)

    return train_in_rounds(model, domains, config=config, merge=merge)


def train_scaffold(model: HeadedModel, domains: Domains, *, config: RunConfig) -> dict[str, Tensor]:
    """SCAFFOLD by its equations, every client remembering its own control; momentum kept by hand."""
    server = getattr(torch.optim, config.server_optimizer)(model.parameters(), lr=config.server_lr)
    control = {name: torch.zeros_like(parameters_to_vector(model.parameters()).detach()) for name in domains}
    sizes = {name: len(labels) if config.weighting == "examples" else 1 for name, (_, labels) in domains.items()}
    for now in rounds_of(domains, config):
        mean = torch.stack([sizes[name] / sum(sizes.values()) * control[name] for name in domains]).sum(0)
        start, ways, fresh = parameters_to_vector(model.parameters()).detach(), [], {}
        for name in now.batches:
            place, speed, counts, met = start.clone(), torch.zeros_like(start), 0.0, torch.zeros_like(start)
            for j, step in enumerate(range((now.number - 1) * config.local_steps, now.number * config.local_steps)):
                own = copy.deepcopy(model)
                vector_to_parameters(place.clone(), own.parameters())
                loss = cross_entropy(own, batch_of(domains, name, config, step)) + config.l2 * squares_of(own)
                slope = parameters_to_vector(torch.autograd.grad(loss, list(own.parameters())))
                slope = slope + config.weight_decay * place
                counted = sum(config.momentum**later for later in range(config.local_steps - j))
                counts, met = counts + counted, met + counted * slope
                speed = config.momentum * speed + slope - control[name] + mean
                place = place - config.client_rate.at(now.number) * speed
            ways.append(place - start)
            fresh[name] = met / counts
        control |= fresh
        server.param_groups[0]["lr"] = config.server_rate.at(now.number)
        step_along(model, server, -now.mean(ways))
    return tensors_of(model)
