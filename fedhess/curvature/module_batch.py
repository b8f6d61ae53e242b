"""One batch as a head that is any module sees it, and derivatives by all of the head's parameters as flat vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class ModuleBatch:
    """Hold the inputs and labels of a head that is any module.

    Statistics leave the head's buffers alone (batch norm in training mode does not count their forward passes).

    Args:
        features: Inputs of the head, (B, ...).
        labels: Class indices, (B,), int64; 0 or 1 for a head with one output.
        head: Maps features to logits, (B, C) or (B, 1).

    Raises:
        ValueError: If the head has no parameters, or labels are not int64 of shape (B,).
    """

    features: Tensor
    labels: Tensor
    head: nn.Module

    def __post_init__(self) -> None:
        if next(self.head.parameters(), None) is None:
            raise ValueError("head: expected a module with parameters, got none; statistics are derivatives by them")
        if self.labels.shape != self.features.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected int64 of shape ({self.features.shape[0]},), got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; pass one class index an example (labels.long())"
            )

    @property
    def loss(self) -> Tensor:
        """Mean loss, (), from one forward pass of the head."""
        return _losses(self.head(self.features), self.labels).mean()

    def example_losses(self) -> tuple[Tensor, list[Tensor]]:
        """Return each example's loss, (B,), with a graph, and the parameters that it can be differentiated by."""
        parameters = {
            name: value if value.requires_grad else value.detach().requires_grad_()
            for name, value in self.head.named_parameters()
        }
        buffers = {name: value.clone() for name, value in self.head.named_buffers()}
        logits_BC = functional_call(self.head, {**parameters, **buffers}, (self.features,))
        return _losses(logits_BC, self.labels), list(parameters.values())


def flat_grad(output: Tensor, parameters: list[Tensor], vector: Tensor | None, *, create_graph: bool = True) -> Tensor:
    """Differentiate an output, weighted by ``vector`` unless it is a scalar, by the parameters: (P,).

    Args:
        output: (), or (N,) with ``vector``.
        parameters: What to differentiate by; those that the output does not depend on count as zero.
        vector: (N,) or None.
        create_graph: Whether the result can be differentiated again.

    Returns:
        (P,), in the order of ``parameters``.
    """
    pieces = torch.autograd.grad(
        output, parameters, vector, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )
    return torch.cat([piece.reshape(-1) for piece in pieces])


def flat_rows(outputs: Tensor, parameters: list[Tensor], rows: Tensor) -> Tensor:
    """Multiply several row vectors by the Jacobian of the outputs.

    Args:
        outputs: (N,).
        parameters: What to differentiate by.
        rows: (n, N).

    Returns:
        (n, P), differentiable again.
    """
    pieces = torch.autograd.grad(
        outputs, parameters, rows, create_graph=True, materialize_grads=True, is_grads_batched=True
    )
    return torch.cat([piece.reshape(rows.shape[0], -1) for piece in pieces], dim=1)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        targets_B = labels.to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), targets_B, reduction="none")
    return functional.cross_entropy(logits, labels, reduction="none")
