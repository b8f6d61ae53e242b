"""FedSR's objective with torch's own Gaussians, over all domains at once."""

import torch
from centralised import Objective, Round
from domain_statistics import loss_of
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from fedhess.base.seeds import seeded_generator
from fedhess.models.headed import HeadedModel


def fedsr_objective(l2r: float, cmi: float) -> Objective:
    """Mean of CE(head(z)) + l2r mean ||z|| + cmi mean KL of a network with S, s, m, r and C beside it."""

    def of_domain(model: HeadedModel, name: str, now: Round) -> Tensor:
        inputs, labels = now.batches[name]
        own, mean = dict(model.auxiliary.named_parameters()), model.featurizer(inputs)
        sigma = softplus(mean @ own["spread.weight"].T + own["spread.bias"])
        generator = seeded_generator(now.seed, name, 0, "step", now.number - 1)
        z = mean + sigma * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        given = Normal(own["class_mean"][labels], softplus(own["class_spread"])[labels])
        divergence = kl_divergence(Normal(own["scale"] * mean, own["scale"] * sigma), given).sum(1).mean()
        return loss_of(model.head(z), labels) + l2r * z.square().sum(1).sqrt().mean() + cmi * divergence

    return lambda model, now: now.mean(of_domain(model, name, now) for name in now.batches)
