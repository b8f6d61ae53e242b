"""Slow, obvious, centralised versions of the algorithms: one process, all domains, autograd twice and nothing else.

Shared with the package is what an algorithm leaves open: which examples a batch has, who is drawn, which probes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from domain_statistics import (
    Batch,
    Statistic,
    cross_entropy,
    diagonal_of,
    gradient_and_hgp,
    head_gradient_of,
    hgp_of,
    loss_of,
    matrix,
    network_gradient_of,
    products_of,
    variance_of,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from fedhess.base.seeds import batch_indices, derive_seed
from fedhess.curvature.closed_form import draw_signs
from fedhess.federation.server.discovery import draw_clients
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

Domains = dict[str, Batch]


@dataclass(frozen=True)
class Round:
    """One batch of each domain of a round, its weight (all add up to 1), and of how many examples it was drawn.

    A domain that several clients hold is there once for each, as ``domain/client``.
    """

    number: int
    seed: int
    batches: Domains
    weights: dict[str, float]
    held: dict[str, int]

    def of(self, model: HeadedModel, statistic: Statistic) -> list[Tensor]:
        """The statistic of each domain."""
        return [statistic(model, batch) for batch in self.batches.values()]

    def share_of(self, name: str, size: int, *, stands_for: float | None = None) -> float:
        """The share of the square of a batch that stands for so many examples in the references, by default for all."""
        weight, examples = self._sum(name, self.weights), self._sum(name, self.held)
        return size / examples + weight / examples * ((self.held[name] if stands_for is None else stands_for) - size)

    def size_of(self, values: Iterable[Tensor]) -> Tensor:
        """The weighted mean over the domains of the square of what each has in the mean of the values."""
        weighted = {name: self.weights[name] * value for name, value in zip(self.batches, values, strict=True)}
        domains = {name.partition("/")[0]: name for name in weighted}
        return sum(self._sum(own, weighted).square().sum() / self._sum(own, self.weights) for own in domains.values())

    def _sum(self, name: str, of: dict[str, Any]) -> Any:
        """The sum over the clients of a name's domain."""
        return sum(value for other, value in of.items() if other.partition("/")[0] == name.partition("/")[0])

    def mean(self, values: Iterable[Tensor]) -> Tensor:
        """Weighted mean of one value a domain."""
        weighted = [weight * value for weight, value in zip(self.weights.values(), values, strict=True)]
        return torch.stack(weighted).sum(0)


Objective = Callable[[HeadedModel, Round], Tensor]


# -- Penalties that pull a domain to a constant ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pull:
    """The term coefficient * ||s_e - r||^2 / size, s_e a statistic of the domain, r a constant.

    Where ``sizes`` are kept and ``corrected``, the product of the distances of the batch's halves takes the place of
    the square, up to the batch's share of the domain.

    r is what ``reference`` gives; by default the mean over the domains of what ``averaged`` gives, by default of s_e.
    The size is 1; or, where ``sizes`` keeps those of the rounds so far, the largest mean of squares.
    """

    coefficient: float
    statistic: Statistic
    reference: Objective | None = None
    averaged: Callable[[HeadedModel, Round], list[Tensor]] | None = None
    sizes: list[Tensor] | None = None
    corrected: bool = True

    def target(self, model: HeadedModel, now: Round) -> Tensor:
        """The constant r; the round's size is kept."""
        if self.reference is not None:
            return self.reference(model, now).detach()
        values = now.of(model, self.statistic) if self.averaged is None else self.averaged(model, now)
        if self.sizes is not None:
            self.sizes.append(now.size_of(values).detach())
        return now.mean(values).detach()

    def term(self, model: HeadedModel, batch: Batch, target: Tensor, share: float) -> Tensor:
        """The term, (); where it is corrected, the share is the part that the square of the batch has."""
        distance = (self.statistic(model, batch) - target).square().sum()
        if self.sizes is None:
            return self.coefficient * distance
        if self.corrected and share < 1:
            halves = [(batch[0][start::2], batch[1][start::2]) for start in (0, 1)]
            one, other = (self.statistic(model, half) - target if len(half[1]) else 0 * target for half in halves)
            distance = (1 - share) * (one * other).sum() + share * distance
        return self.coefficient * distance / max(self.sizes)


def penalty_of(model: HeadedModel, batch: Batch, terms: Sequence[tuple[Pull, Tensor]], share: float) -> Tensor:
    """The sum of the terms; where they are relative, no steeper at the head than the loss.

    The slopes are taken by features that are cut off from the featurizer, and by the head.
    """

    def whole(of: HeadedModel, its: Batch) -> Tensor:
        return sum((pull.term(of, its, target, share) for pull, target in terms), start=torch.zeros(()))

    if not any(pull.sizes is not None for pull, _ in terms):
        return whole(model, batch)
    features = model.featurizer(batch[0]).detach().requires_grad_()
    alone, cut = HeadedModel(nn.Identity(), model.head), (features, batch[1])
    slopes = [
        torch.autograd.grad(value, [features, model.head.weight, model.head.bias])
        for value in (cross_entropy(alone, cut), whole(alone, cut))
    ]
    by_features = slopes[0][0].norm() / slopes[1][0].norm()
    by_head = matrix(slopes[0][1:]).norm() / matrix(slopes[1][1:]).norm()
    return min(1.0, float(by_features), float(by_head)) * whole(model, batch)


# The pulls of a method in a round.
Pulls = Callable[[Round], list[Pull]]


def uncorrected(pulls: Pulls) -> Pulls:
    """The same pulls with the variance of the batch."""
    return lambda now: [replace(pull, corrected=False) for pull in pulls(now)]


def hgp_pulls(alpha: float, beta: float, form: str = "hgp_of_mean", *, relative: bool = False) -> Pulls:
    """alpha ||H_e g_e - h||^2 + beta ||g_e - g||^2; with ``hgp_of_mean`` h is of the mean loss, as in released code."""
    sizes: list[list[Tensor] | None] = [[], []] if relative else [None, None]

    def along_the_mean(model: HeadedModel, now: Round) -> list[Tensor]:
        mean = gradient_and_hgp(model, now.mean(now.of(model, cross_entropy)))[0].detach()
        return [products_of(model, batch, mean.unsqueeze(0))[0] for batch in now.batches.values()]

    averaged = along_the_mean if form == "hgp_of_mean" else None
    pulls = [Pull(alpha, hgp_of, averaged=averaged, sizes=sizes[0]), Pull(beta, head_gradient_of, sizes=sizes[1])]
    return lambda _: [pull for pull in pulls if pull.coefficient]


def hutchinson_pulls(alpha: float, beta: float, *, probes: int = 0, relative: bool = False) -> Pulls:
    """alpha ||diag H_e - d||^2 + beta ||g_e - g||^2; with probes r, the same for every domain, the mean of r * H r."""
    sizes: list[list[Tensor] | None] = [[], []] if relative else [None, None]

    def pulls(now: Round) -> list[Pull]:
        generator = torch.Generator().manual_seed(derive_seed(now.seed, "round", now.number))

        def probed(model: HeadedModel, batch: Batch) -> Tensor:
            shape = (model.head.out_features, model.head.in_features + 1)
            signs = draw_signs(probes, shape, generator.clone_state()).double()
            return (signs * products_of(model, batch, signs)).mean(0)

        statistics = (probed if probes else diagonal_of, head_gradient_of)
        given = zip((alpha, beta), statistics, sizes, strict=True)
        return [Pull(coefficient, statistic, sizes=own) for coefficient, statistic, own in given if coefficient]

    return pulls


def cma_pulls(a: float, b: float, form: str, *, probes: int = 0, relative: bool = False) -> Pulls:
    """a ||g_e - g||^2 + b ||H_e - H||^2 with the rows of H_e by double backward, over C D; of probes their products."""
    sizes: list[list[Tensor] | None] = [[], []] if relative else [None, None]

    def pulls(now: Round) -> list[Pull]:
        generator = torch.Generator().manual_seed(derive_seed(now.seed, "round", now.number))

        def hessian_of(model: HeadedModel, batch: Batch) -> Tensor:
            (rows, features), columns = model.head.weight.shape, model.head.in_features + 1
            if form == "sketch":
                signs = draw_signs(probes, (rows, columns), generator.clone_state()).double()
                return products_of(model, batch, signs) / (rows * features) / probes**0.5
            basis = torch.eye(rows * columns).double().view(-1, rows, columns)
            whole = products_of(model, batch, basis) / (rows * features)
            if form == "full":
                return whole
            return torch.stack([whole[c * columns : (c + 1) * columns, c] for c in range(rows)])

        return [Pull(a, head_gradient_of, sizes=sizes[0]), Pull(b, hessian_of, sizes=sizes[1])]

    return pulls


def fedprox_pulls(mu: float) -> Pulls:
    """(mu / 2) ||theta - theta_global||^2: the parameters are the statistic, the same for every domain at first."""
    return lambda _: [Pull(mu / 2, lambda model, _: parameters_to_vector(model.parameters()))]


def iga_pulls(coefficient: float) -> Pulls:
    """lambda E ||grad L_e - G||^2: the form that adds up over the E domains."""
    return lambda now: [Pull(coefficient * len(now.batches), network_gradient_of)]


def pulled(pulls: Pulls) -> Objective:
    """Mean over domains of L_e and its pulls."""

    def objective(model: HeadedModel, now: Round) -> Tensor:
        terms = [(pull, pull.target(model, now)) for pull in pulls(now)]
        return now.mean(
            cross_entropy(model, batch) + penalty_of(model, batch, terms, now.share_of(name, len(batch[1])))
            for name, batch in now.batches.items()
        )

    return objective


# -- Objectives over all domains ---------------------------------------------------------------------------------------


def erm_objective() -> Objective:
    """Mean over domains of L_e."""
    return pulled(lambda _: [])


def irm_objective(weight: float, form: str) -> Objective:
    """Mean of L_e + w D_e with the dummy scale differentiated by autograd, as IRM's own code does."""

    def derivative(model: HeadedModel, batch: Batch) -> Tensor:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = loss_of(scale * model(batch[0]), batch[1])
        return torch.autograd.grad(loss, scale, create_graph=True)[0]

    def penalty(model: HeadedModel, batch: Batch) -> Tensor:
        if form == "squared":
            return derivative(model, batch) ** 2
        even, odd = ((batch[0][start::2], batch[1][start::2]) for start in (0, 1))
        return derivative(model, even) * derivative(model, odd)

    return lambda model, now: now.mean(
        cross_entropy(model, batch) + weight * penalty(model, batch) for batch in now.batches.values()
    )


def vrex_objective(weight: float) -> Objective:
    """Mean of the losses plus the weighted mean of their squared deviations, nothing detached."""

    def objective(model: HeadedModel, now: Round) -> Tensor:
        losses = now.of(model, cross_entropy)
        mean = now.mean(losses)
        return mean + weight * now.mean((loss - mean) ** 2 for loss in losses)

    return objective


def coral_objective(gamma: float) -> Objective:
    """DomainBed's form: the mean over pairs of domains of the squared gaps of means and covariances.

    Where domains a and b weigh w_a and w_b, their pair weighs 2 E / (E - 1) w_a w_b: for equal weights the mean.
    """

    def objective(model: HeadedModel, now: Round) -> Tensor:
        features = [model.featurizer(inputs) for inputs, _ in now.batches.values()]
        weighed = zip(now.weights.values(), features, strict=True)
        gaps = [
            w_a * w_b * ((a.mean(0) - b.mean(0)).pow(2).mean() + (torch.cov(a.T) - torch.cov(b.T)).pow(2).mean())
            for (w_a, a), (w_b, b) in combinations(weighed, 2)
        ]
        count = len(features)
        pairs = 2 * count / (count - 1) * torch.stack(gaps).sum()
        return now.mean(now.of(model, cross_entropy)) + gamma * pairs

    return objective


def iga_objective(coefficient: float, *, form: str) -> Objective:
    """Mean of L_e, and lambda times sum or mean of ||grad L_e - mean||^2 over the whole network, nothing detached.

    Where domains weigh differently the sum is E times their weighted mean.
    """

    def objective(model: HeadedModel, now: Round) -> Tensor:
        gradients = now.of(model, network_gradient_of)
        mean = now.mean(gradients)
        squares = now.mean((g - mean).square().sum() for g in gradients)
        factor = len(gradients) if form == "sum" else 1
        return now.mean(now.of(model, cross_entropy)) + coefficient * factor * squares

    return objective


def fishr_objective(weight: float, ema: float) -> Objective:
    """DomainBed's form: per-example gradients one by one, moving averages over 1 - ema, mean squared entries.

    The clients of a domain share its moving average, that of their mean.
    """
    past: dict[str, Tensor] = {}

    def objective(model: HeadedModel, now: Round) -> Tensor:
        variances = dict(zip(now.batches, now.of(model, variance_of), strict=True))
        domain_of = {name: name.partition("/")[0] for name in variances}
        zero = torch.zeros_like(next(iter(variances.values())))
        averages = [
            (ema * past.get(domain_of[name], zero) + (1 - ema) * own) / (1 - ema) for name, own in variances.items()
        ]
        mean = now.mean(averages)
        penalty = now.mean((average - mean).pow(2).mean() for average in averages)
        for domain in sorted(set(domain_of.values())):
            shares = {name: share for name, share in now.weights.items() if domain_of[name] == domain}
            own = torch.stack([share * variances[name].detach() for name, share in shares.items()]).sum(0)
            past[domain] = ema * past.get(domain, zero) + (1 - ema) * own / sum(shares.values())
        return now.mean(now.of(model, cross_entropy)) + weight * penalty

    return objective


def rsc_objective(f: float, b: float) -> Objective:
    """DomainBed's form, each domain a batch of its own: quantiles by NumPy, the slopes by autograd."""

    def muted_loss(model: HeadedModel, batch: Batch) -> Tensor:
        features, labels = model.featurizer(batch[0]), batch[1]
        logits = model.head(features)
        two = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
        picked = functional.one_hot(labels, two.shape[1])
        # Of one logit that of class 0 is its negative.
        own = (two * picked).sum() - (two * (1 - picked)).sum() if logits.shape[1] == 1 else (two * picked).sum()
        slopes = torch.autograd.grad(own, features, retain_graph=True)[0].numpy()
        kept = torch.from_numpy(slopes < np.percentile(slopes, 100 * (1 - f), axis=1)[:, None])
        after = model.head(features * kept)
        after = torch.cat([torch.zeros_like(after), after], dim=1) if after.shape[1] == 1 else after
        drops = ((two.softmax(1) - after.softmax(1)) * picked).sum(1).detach().numpy()
        spared = torch.from_numpy(drops < np.percentile(drops, 100 * (1 - b)))
        return loss_of(model.head(features * (kept | spared.unsqueeze(1))), labels)

    return lambda model, now: now.mean(muted_loss(model, batch) for batch in now.batches.values())


def fediir_objective(gamma: float, ema: float) -> Objective:
    """Mean of L_e + gamma ||g_e - r||^2 with r the moving average of the mean head gradient."""
    past: list[Tensor] = []

    def average(model: HeadedModel, now: Round) -> Tensor:
        mean = now.mean(now.of(model, head_gradient_of))
        past.append(mean.detach() if not past else ema * past[-1] + (1 - ema) * mean.detach())
        return past[-1]

    return pulled(lambda _: [Pull(gamma, head_gradient_of, average)])


def server_alignment_objective(step: float, lr: float) -> Objective:
    """ERM plus the variance of head gradients, whose gradient is taken in the head alone."""

    def objective(model: HeadedModel, now: Round) -> Tensor:
        features = [(model.featurizer(inputs).detach(), labels) for inputs, labels in now.batches.values()]
        gradients = [gradient_and_hgp(model, loss_of(model.head(z), labels))[0] for z, labels in features]
        mean = now.mean(gradients)
        variance = now.mean((gradient - mean).square().sum() for gradient in gradients)
        return now.mean(now.of(model, cross_entropy)) + step / lr * variance

    return objective


def adversarial_objective(domains: Sequence[str], move: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Sum of q_e L_e over the domains that take part, over the sum of their q; the others have loss 0 when q moves."""
    q = [torch.full((len(domains),), 1 / len(domains), dtype=torch.float64)]

    def objective(model: HeadedModel, now: Round) -> Tensor:
        losses = dict(zip(now.batches, now.of(model, cross_entropy), strict=True))
        seen = torch.stack([losses[name].detach() if name in losses else torch.zeros(()).double() for name in domains])
        q.append(move(q[-1], seen))
        weights = dict(zip(domains, q[-1], strict=True))
        total = torch.stack([weights[name] for name in losses]).sum()
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum() / total

    return objective


def groupdro_move(eta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """GroupDRO's own step: weights multiplied by exp(eta L), normalised."""
    return lambda q, losses: functional.normalize(q * (eta * losses).exp(), p=1, dim=0)


def afl_move(eta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """AFL's: weights moved by eta L and projected onto the simplex by bisection on the shift."""

    def project(point: Tensor) -> Tensor:
        low, high = point.min() - 1, point.max()
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (point - middle).clamp(min=0).sum() > 1 else (low, middle)
        return (point - high).clamp(min=0)

    return lambda q, losses: project(q + eta * losses)


# -- Training ----------------------------------------------------------------------------------------------------------


def batch_of(domains: Domains, name: str, config: RunConfig, step: int, *, batches: int = 1) -> Batch:
    """The batch of one step of a domain, or of several steps that follow each other."""
    inputs, labels = domains[name]
    options = {"batch_size": config.batch_size, "key": (config.seed, name, 0)}
    chosen = torch.cat([batch_indices(len(labels), step=step + later, **options) for later in range(batches)])
    return inputs[chosen], labels[chosen]


def rounds_of(domains: Domains, config: RunConfig) -> Iterator[Round]:
    """The rounds of a run, with the batches that each one's statistics are of: from its first step on."""
    for number in range(1, config.rounds + 1):
        present = draw_clients(list(domains), config.clients_per_round, seed=config.seed, server_round=number)
        sizes = {name: len(domains[name][1]) if config.weighting == "examples" else 1 for name in present}
        step = (number - 1) * config.local_steps
        batches = {name: batch_of(domains, name, config, step, batches=config.statistics_batches) for name in present}
        weights = {name: n / sum(sizes.values()) for name, n in sizes.items()}
        yield Round(number, config.seed, batches, weights, {name: len(domains[name][1]) for name in present})


def squares_of(model: HeadedModel) -> Tensor:
    """The sum of squared parameters, which l2 multiplies."""
    return parameters_to_vector(model.parameters()).square().sum()


def tensors_of(model: HeadedModel) -> dict[str, Tensor]:
    """The model's tensors."""
    return {name: value.detach() for name, value in model.state_dict().items()}


def train_centrally(
    model: HeadedModel, domains: Domains, *, config: RunConfig, objective: Objective, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Train one model on all domains at once, a batch of each domain a step; return its tensors."""
    for now in rounds_of(domains, config):
        optimizer.zero_grad()
        (objective(model, now) + config.l2 * squares_of(model)).backward()
        optimizer.step()
    return tensors_of(model)
