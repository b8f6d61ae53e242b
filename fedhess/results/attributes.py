"""The attributes of a domain that alignment methods align, and how far two domains are apart in each attribute.

Hemati et al. ("Understanding Hessian Alignment for Domain Generalization", ICCV 2023, arXiv 2308.11778) explain methods
by the attribute of a domain that they align under one model: V-REx the loss; Fish, IGA and FedIIR the gradient; Fishr
its variance; CORAL mean and covariance of the features; HGP and Hutchinson gradient and Hessian. All attributes of the
head are in closed form (:mod:`fedhess.curvature`), so a pair of domains costs one Lanczos iteration and subtractions.

Shape suffixes: B examples, D features, C classes, K = D + 1 with the bias column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedhess.curvature import (
    HeadBatch,
    gradient_variance,
    head_gradient,
    hessian_diagonal,
    hessian_gradient_product,
    spectral_distance,
)

Kind = Literal["distance", "similarity"]


@dataclass(frozen=True)
class DomainAttributes:
    """What one domain looks like to the head of one model."""

    batch: HeadBatch
    loss: Tensor  # ()
    gradient: Tensor  # of the mean loss with respect to the head, (C, K)
    gradient_variance: Tensor  # over examples, (C, K)
    feature_mean: Tensor  # (D,)
    feature_covariance: Tensor  # (D, D), divided by B, so that one example has a covariance of zero
    class_means: Mapping[int, Tensor]  # by class present in the domain, (D,)
    hgp: Tensor  # Hessian-gradient product H[g], (C, K)
    hessian_diagonal: Tensor  # (C, K)


@torch.no_grad()
def measure_domain(batch: HeadBatch) -> DomainAttributes:
    """Measure every attribute of a domain that does not need a second domain."""
    features_BD = batch.features
    mean_D = features_BD.mean(0)
    centred_BD = features_BD - mean_D
    present = sorted(set(batch.labels.tolist()))
    return DomainAttributes(
        batch=batch,
        loss=batch.loss,
        gradient=head_gradient(batch),
        gradient_variance=gradient_variance(batch),
        feature_mean=mean_D,
        feature_covariance=centred_BD.T @ centred_BD / batch.size,
        class_means={label: features_BD[batch.labels == label].mean(0) for label in present},
        hgp=hessian_gradient_product(batch),
        hessian_diagonal=hessian_diagonal(batch),
    )


@dataclass(frozen=True)
class Attribute:
    """One way in which two domains can be alike."""

    label: str  # for tables and figures
    kind: Kind  # a distance is 0 for equal domains and shrinks with alignment; a similarity grows with it
    # The value for two domains, (), not rounded; NaN where it is not defined
    compare: Callable[[DomainAttributes, DomainAttributes], Tensor]


def gradient_norm_difference(a: DomainAttributes, b: DomainAttributes) -> Tensor:
    """Compute | ||g_a|| - ||g_b|| |, ()."""
    return (_norm(a.gradient) - _norm(b.gradient)).abs()


def gradient_inner_product(a: DomainAttributes, b: DomainAttributes) -> Tensor:
    """Compute <g_a, g_b>, (): what Fish maximises (Shi et al., "Gradient Matching for Domain Generalization", 2022)."""
    return (a.gradient * b.gradient).sum()


def gradient_cosine(a: DomainAttributes, b: DomainAttributes) -> Tensor:
    """Compute <g_a, g_b> / (||g_a|| ||g_b||), (); NaN if a gradient is zero and has no direction."""
    return gradient_inner_product(a, b) / (_norm(a.gradient) * _norm(b.gradient))


def class_mean_distance(a: DomainAttributes, b: DomainAttributes) -> Tensor:
    """Compute the root mean square over shared classes of ||m_a,c - m_b,c||, (); NaN if no class is in both."""
    shared = sorted(a.class_means.keys() & b.class_means.keys())
    if not shared:
        return torch.full_like(a.loss, torch.nan)
    return torch.stack([(a.class_means[c] - b.class_means[c]).square().sum() for c in shared]).mean().sqrt()


def _norm(value: Tensor) -> Tensor:
    return value.square().sum().sqrt()


def _frobenius(name: str) -> Callable[[DomainAttributes, DomainAttributes], Tensor]:
    def distance(a: DomainAttributes, b: DomainAttributes) -> Tensor:
        value_a: Tensor = getattr(a, name)
        value_b: Tensor = getattr(b, name)
        return _norm(value_a - value_b)

    return distance


# All norms are plain, not squared, so they have the unit of the attribute.
ATTRIBUTES: Mapping[str, Attribute] = {
    "loss": Attribute("loss", "distance", lambda a, b: (a.loss - b.loss).abs()),
    "gradient_norm": Attribute("gradient norm", "distance", gradient_norm_difference),
    "gradient": Attribute("gradient", "distance", _frobenius("gradient")),
    "gradient_inner_product": Attribute("gradient inner product", "similarity", gradient_inner_product),
    "gradient_cosine": Attribute("gradient cosine", "similarity", gradient_cosine),
    "gradient_variance": Attribute("gradient variance", "distance", _frobenius("gradient_variance")),
    "feature_mean": Attribute("feature mean", "distance", _frobenius("feature_mean")),
    "feature_covariance": Attribute("feature covariance", "distance", _frobenius("feature_covariance")),
    "class_feature_means": Attribute("class feature means", "distance", class_mean_distance),
    "hgp": Attribute("HGP", "distance", _frobenius("hgp")),
    "hessian_diagonal": Attribute("Hessian diagonal", "distance", _frobenius("hessian_diagonal")),
    "hessian_spectral": Attribute(
        "Hessian spectral norm", "distance", lambda a, b: spectral_distance(a.batch, b.batch)
    ),
}


@torch.no_grad()
def compare_domains(a: DomainAttributes, b: DomainAttributes) -> dict[str, float]:
    """Measure how far two domains are apart in every attribute.

    Returns:
        By the names of :data:`ATTRIBUTES`; symmetric in the two domains. NaN where an attribute is not defined.

    >>> features = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> one = measure_domain(HeadBatch(features, torch.tensor([0, 1]), torch.zeros(2, 2)))
    >>> other = measure_domain(HeadBatch(features + 3, torch.tensor([0, 1]), torch.zeros(2, 2)))
    >>> round(compare_domains(one, other)["feature_mean"], 4)
    4.2426
    """
    return {name: float(attribute.compare(a, b)) for name, attribute in ATTRIBUTES.items()}
