"""Statistics of one domain as autograd gives them, each differentiable again: twice backward and nothing else."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.models.headed import HeadedModel

Batch = tuple[Tensor, Tensor]
Statistic = Callable[[HeadedModel, Batch], Tensor]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, or mean logistic loss for one logit."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def cross_entropy(model: HeadedModel, batch: Batch) -> Tensor:
    """Mean loss of one domain's batch, from the model's own forward."""
    return loss_of(model(batch[0]), batch[1])


def matrix(parts: Sequence[Tensor]) -> Tensor:
    """Weight and bias gradients as one (C, K) matrix."""
    return torch.cat([parts[0], parts[1].unsqueeze(-1)], dim=-1)


def gradient_and_hgp(model: HeadedModel, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The head gradient of a loss, and its head Hessian times that gradient, both differentiable again."""
    head = [model.head.weight, model.head.bias]
    gradient = torch.autograd.grad(loss, head, create_graph=True)
    product = torch.autograd.grad(gradient, head, grad_outputs=gradient, create_graph=True)
    return matrix(gradient), matrix(product)


def head_gradient_of(model: HeadedModel, batch: Batch) -> Tensor:
    """The head gradient, (C, K)."""
    return gradient_and_hgp(model, cross_entropy(model, batch))[0]


def hgp_of(model: HeadedModel, batch: Batch) -> Tensor:
    """The head Hessian times the head gradient, (C, K)."""
    return gradient_and_hgp(model, cross_entropy(model, batch))[1]


def products_of(model: HeadedModel, batch: Batch, vectors: Tensor) -> Tensor:
    """The head Hessian times each of n vectors, (n, C, K), a double backward each."""
    head = [model.head.weight, model.head.bias]
    gradient = torch.autograd.grad(cross_entropy(model, batch), head, create_graph=True)
    parts = (vectors[..., :-1], vectors[..., -1])
    return matrix(torch.autograd.grad(gradient, head, parts, is_grads_batched=True, create_graph=True))


def diagonal_of(model: HeadedModel, batch: Batch) -> Tensor:
    """The diagonal of the head Hessian, (C, K), from every row of it."""
    like = matrix((model.head.weight, model.head.bias)).detach()
    rows = products_of(model, batch, torch.eye(like.numel(), dtype=like.dtype).view(-1, *like.shape))
    return rows.flatten(1).diagonal().view_as(like)


def variance_of(model: HeadedModel, batch: Batch) -> Tensor:
    """The variance of the head gradients of single examples, (C, K): each example has a copy of the head."""
    inputs, labels = batch
    features = model.featurizer(inputs)
    weight, bias = (p.unsqueeze(0).expand(len(labels), *p.shape) for p in (model.head.weight, model.head.bias))
    logits = (weight @ features.unsqueeze(2)).squeeze(2) + bias
    total = len(labels) * loss_of(logits, labels)
    return matrix(torch.autograd.grad(total, [weight, bias], create_graph=True)).var(0, unbiased=False)


def network_gradient_of(model: HeadedModel, batch: Batch) -> Tensor:
    """The gradient of the whole network, (P,)."""
    gradients = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()), create_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
