"""Losses of domains with fixed features, as functions of the head alone.

Shape suffixes: B examples, R heads at once, C classes, K = D + 1 with the bias column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.curvature import HeadBatch, head_hvp


class Landscape:
    """A loss as a function of the head theta = [W | b], (C, K)."""

    def value_and_gradient(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (R,) and gradients (R, C, K) at several heads (R, C, K)."""
        raise NotImplementedError

    def gradient(self, head: Tensor) -> Tensor:
        """Return the gradient at one head, (C, K)."""
        return self.value_and_gradient(head[None])[1][0]

    def hvp(self, head: Tensor, vector: Tensor) -> Tensor:
        """Multiply the Hessian at one head by a vector (C, K)."""
        raise NotImplementedError


@dataclass(frozen=True)
class DomainLandscape(Landscape):
    """Mean of the domains' losses, each a mean over its examples, as a function of a linear head.

    Args:
        batches: One per domain; only features and labels are used, and whether the head has a bias.
    """

    batches: Sequence[HeadBatch]

    def value_and_gradient(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients."""
        values_R, gradients_RCK = heads.new_zeros(heads.shape[0]), torch.zeros_like(heads)
        for batch in self.batches:
            inputs_BK = batch.basics.inputs
            logits_RBC = (inputs_BK @ heads.flatten(0, 1).T).view(batch.size, *heads.shape[:2]).transpose(0, 1)
            if batch.is_logistic:
                targets_RB1 = batch.labels.to(heads)[None, :, None].expand_as(logits_RBC)
                losses_RB1 = functional.binary_cross_entropy_with_logits(logits_RBC, targets_RB1, reduction="none")
                residuals_RBC = logits_RBC.sigmoid() - targets_RB1
            else:
                chosen_RB1 = batch.labels[None, :, None].expand(heads.shape[0], -1, 1)
                logs_RBC = logits_RBC.log_softmax(2)
                losses_RB1 = -logs_RBC.gather(2, chosen_RB1)
                residuals_RBC = logs_RBC.exp().scatter_add(2, chosen_RB1, heads.new_full(chosen_RB1.shape, -1.0))
            values_R += losses_RB1[..., 0].mean(1)
            gradients_RCK += residuals_RBC.transpose(1, 2) @ inputs_BK / batch.size
        return values_R / len(self.batches), gradients_RCK / len(self.batches)

    def hvp(self, head: Tensor, vector: Tensor) -> Tensor:
        """Multiply the Hessian at one head by a vector (C, K)."""
        images = [head_hvp(_with_head(batch, head), vector) for batch in self.batches]
        return torch.stack(images).mean(0)


def minimum_loss(landscape: Landscape, start: Tensor, *, steps: int = 200) -> float:
    """Minimise a convex loss over heads by L-BFGS from a head (C, K), without a penalty.

    Returns:
        The smallest value found, an upper bound of the minimum. If the features separate the classes, no head attains
        the infimum 0, and the value is a small number.
    """
    head = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([head], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

    def closure() -> Tensor:
        values, gradients = landscape.value_and_gradient(head.detach()[None])
        head.grad = gradients[0]
        return values[0]

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(landscape.value_and_gradient(head.detach()[None])[0][0])


def stacked_head(batch: HeadBatch) -> Tensor:
    """Return the head of a batch as one tensor [W | b], (C, K)."""
    return batch.weight if batch.bias is None else torch.cat([batch.weight, batch.bias[:, None]], dim=1)


def _with_head(batch: HeadBatch, head: Tensor) -> HeadBatch:
    if batch.bias is None:
        return HeadBatch(batch.features, batch.labels, head)
    return HeadBatch(batch.features, batch.labels, head[:, :-1].contiguous(), head[:, -1].contiguous())
