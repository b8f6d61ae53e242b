"""Slow and obvious versions of what the package computes fast: autograd, double backward, dense matrices and loops."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.curvature import HeadBatch


@dataclass
class Head:
    """A head with theta = [W | b] in one leaf, so that derivatives by it have the shape (C, K)."""

    features: Tensor
    labels: Tensor
    theta: Tensor
    has_bias: bool

    def __post_init__(self) -> None:
        self.features = self.features.detach().clone().requires_grad_()
        self.theta = self.theta.detach().clone().requires_grad_()

    @property
    def batch(self) -> HeadBatch:
        """The same head for the package; its weight and bias are views of theta, in theta's graph."""
        if self.has_bias:
            return HeadBatch(self.features, self.labels, self.theta[:, :-1], self.theta[:, -1])
        return HeadBatch(self.features, self.labels, self.theta)

    def loss(self, theta: Tensor) -> Tensor:
        weight, bias = (theta[:, :-1], theta[:, -1]) if self.has_bias else (theta, None)
        logits = functional.linear(self.features, weight, bias)
        if theta.shape[0] == 1:
            return functional.binary_cross_entropy_with_logits(logits[:, 0], self.labels.to(logits.dtype))
        return functional.cross_entropy(logits, self.labels)


def gradient(head: Head) -> Tensor:
    (value,) = torch.autograd.grad(head.loss(head.theta), head.theta, create_graph=True)
    return value


def hvp(head: Head, vector: Tensor) -> Tensor:
    (value,) = torch.autograd.grad(gradient(head), head.theta, vector, create_graph=True)
    return value


def hgp(head: Head) -> Tensor:
    own = gradient(head)
    (value,) = torch.autograd.grad(own, head.theta, own, create_graph=True)
    return value


def dense_hessian(head: Head) -> Tensor:
    """The (C*K, C*K) Hessian, row by row, with a graph."""
    own = gradient(head).reshape(-1)
    rows = [torch.autograd.grad(entry, head.theta, create_graph=True)[0].reshape(-1) for entry in own]
    return torch.stack(rows)


def diagonal(head: Head) -> Tensor:
    return dense_hessian(head).diagonal().reshape(head.theta.shape)


def variance(head: Head) -> Tensor:
    """Variance of the gradients taken one example at a time."""
    singles = []
    for index in range(len(head.labels)):
        one = slice(index, index + 1)
        single = Head(head.features, head.labels[one], head.theta, head.has_bias)
        single.features, single.theta = head.features[one], head.theta
        singles.append(gradient(single))
    stacked = torch.stack(singles)
    return ((stacked - stacked.mean(0)) ** 2).mean(0)


def spectral_norm_of_difference(head_a: Head, head_b: Head) -> Tensor:
    return torch.linalg.eigvalsh(dense_hessian(head_a) - dense_hessian(head_b)).abs().max()


def hutchinson_by_double_backward(head: Head, signs: Tensor) -> Tensor:
    """Mean of r * H r over probes (n, C, K), one double backward a probe."""
    return torch.stack([sign * hvp(head, sign) for sign in signs]).mean(0)
