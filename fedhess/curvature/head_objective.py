"""A head's loss and its squared distances to fixed references as one autograd node with a hand-written backward.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).

Symbols: R' = R / B, so that G = R'^T z-hat; M = z-hat z-hat^T; U = z-hat G^T = M R'; S' = curve(U) / B, so that
H[G] = S'^T z-hat. As curve is linear and symmetric in U, a derivative V by curve(U) becomes curve(V) by U, and the
derivative by the logits is curve(derivative by R + derivative of curve(U) by P). Derivatives are named ``half_`` where
they still lack the factor 2 of a square. :mod:`fedhess.curvature.distances` says when which form is used.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedhess.curvature.closed_form import HeadBatch, head_gradient

NOISE = 8.0  # in eps * (||G||^2 + ||r||^2): an expanded distance below it is rounding (measured: up to 1.5), given as 0


class LogitCurvature:
    """The map U -> curve(U) at fixed probabilities, and its pullback.

    Args:
        probabilities: P, (B, C).
        directions: U, (B, C).
    """

    def __init__(self, probabilities: Tensor, directions: Tensor) -> None:
        self.probabilities_BC, self.directions_BC = probabilities, directions
        self.is_logistic = probabilities.shape[1] == 1
        if self.is_logistic:
            self.centred_BC = (1 - probabilities) * directions
        else:
            self.centred_BC = directions - (probabilities * directions).sum(1, keepdim=True)
        self.curved_BC = probabilities * self.centred_BC

    def pull(self, to_curved: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate <to_curved, curve(U)> by U, and by P up to what a following ``curve`` drops; each (B, C)."""
        products_BC = self.probabilities_BC * to_curved
        if self.is_logistic:
            to_directions_BC = products_BC * (1 - self.probabilities_BC)
            return to_directions_BC, to_curved * self.directions_BC * (1 - 2 * self.probabilities_BC)
        means_B1 = products_BC.sum(1, keepdim=True)
        through_BC = torch.addcmul(to_curved * self.centred_BC, self.directions_BC, means_B1, value=-1)
        return products_BC.addcmul_(self.probabilities_BC, means_B1, value=-1), through_BC


class DirectForm:
    """Build G and H[G], (C, K), and subtract: for few classes, or a batch too large for a Gram matrix.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Reference of G, (C, K), or None.
        hgp: Reference of H[G], (C, K), or None.
    """

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.basics = batch.basics
        self.width = batch.features.shape[1]
        self.gradient_CK = head_gradient(batch)
        self.gradient_gap_CK = self.hgp_gap_CK = None
        self.gradient_distance = self.hgp_distance = None
        if gradient is not None:
            self.gradient_gap_CK = self.gradient_CK - gradient
            self.gradient_distance = _square(self.gradient_gap_CK)
        if hgp is not None:
            inputs_BK, _, probabilities_BC, _ = self.basics
            self.curvature = LogitCurvature(probabilities_BC, inputs_BK @ self.gradient_CK.T)
            self.left_BC = self.curvature.curved_BC / batch.size
            self.hgp_gap_CK = (self.left_BC.T @ inputs_BK).sub_(hgp)
            self.hgp_distance = _square(self.hgp_gap_CK)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor) -> Tensor:
        """Return half of the derivative by R', (B, C)."""
        inputs_BK, *_ = self.basics
        half_gradient_CK = None if self.gradient_gap_CK is None else self.gradient_gap_CK * by_gradient
        through_BC: Tensor | None = None
        if self.hgp_gap_CK is not None:
            self.half_hgp_CK = self.hgp_gap_CK * by_hgp
            half_left_BC = inputs_BK @ self.half_hgp_CK.T
            half_directions_BC, through_BC = self.curvature.pull(half_left_BC)
            self.half_directions_BC = half_directions_BC.div_(len(inputs_BK))
            through_gradient_CK = self.half_directions_BC.T @ inputs_BK
            half_gradient_CK = (
                through_gradient_CK if half_gradient_CK is None else half_gradient_CK.add_(through_gradient_CK)
            )
        assert half_gradient_CK is not None, "without references there is nothing to pull back"
        self.half_gradient_CK = half_gradient_CK
        half_residuals_BC = inputs_BK @ half_gradient_CK.T
        return half_residuals_BC if through_BC is None else half_residuals_BC.add_(through_BC)

    def add_to_features(self, to_features: Tensor) -> None:
        """Add the derivative by the features past the logits, (B, D); follows :meth:`pull`."""
        to_features.addmm_(self.basics.mean_residuals, self.half_gradient_CK[:, : self.width], alpha=2)
        if self.hgp_gap_CK is not None:
            to_features.addmm_(self.half_directions_BC, self.gradient_CK[:, : self.width], alpha=2)
            to_features.addmm_(self.left_BC, self.half_hgp_CK[:, : self.width], alpha=2)


class GramForm:
    """Expand the squares through M, (B, B), without building G or H[G]: for many classes.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Reference of G, (C, K), or None.
        hgp: Reference of H[G], (C, K), or None.
    """

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.basics, self.gram_BB = batch.basics, batch.gram
        self.features, self.gradient, self.hgp = batch.features, gradient, hgp
        _, _, probabilities_BC, residuals_BC = self.basics
        directions_BC = self.gram_BB @ residuals_BC
        self.gradient_distance = self.hgp_distance = None
        if gradient is not None:
            self.gradient_gap_BC, self.gradient_distance = _expand(batch, residuals_BC, directions_BC, gradient)
        if hgp is not None:
            self.curvature = LogitCurvature(probabilities_BC, directions_BC)
            self.left_BC = self.curvature.curved_BC / batch.size
            self.hgp_gap_BC, self.hgp_distance = _expand(batch, self.left_BC, self.gram_BB @ self.left_BC, hgp)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor) -> Tensor:
        """Return half of the derivative by R', (B, C)."""
        self.scales = by_gradient, by_hgp
        half_residuals_BC = None if self.gradient is None else self.gradient_gap_BC * by_gradient
        if self.hgp is None:
            assert half_residuals_BC is not None, "without references there is nothing to pull back"
            return half_residuals_BC
        half_directions_BC, through_BC = self.curvature.pull(self.hgp_gap_BC * by_hgp)
        self.half_directions_BC = half_directions_BC.div_(len(self.features))
        if half_residuals_BC is not None:
            through_BC.add_(half_residuals_BC)
        return through_BC.addmm_(self.gram_BB, self.half_directions_BC)

    def add_to_features(self, to_features: Tensor) -> None:
        """Add the derivative by the features past the logits, (B, D); follows :meth:`pull`."""
        residuals_BC, width = self.basics.mean_residuals, self.features.shape[1]
        half_mixing_BB = torch.zeros_like(self.gram_BB)
        if self.gradient is not None:
            scaled_BC = residuals_BC * self.scales[0]
            half_mixing_BB.addmm_(scaled_BC, residuals_BC.T)
            to_features.addmm_(scaled_BC, self.gradient[:, :width], alpha=-2)
        if self.hgp is not None:
            scaled_BC = self.left_BC * self.scales[1]
            crossed_BB = self.half_directions_BC @ residuals_BC.T
            half_mixing_BB.addmm_(scaled_BC, self.left_BC.T).add_(crossed_BB).add_(crossed_BB.T)
            to_features.addmm_(scaled_BC, self.hgp[:, :width], alpha=-2)
        to_features.addmm_(half_mixing_BB, self.features, alpha=2)


class HeadNode(torch.autograd.Function):
    """Loss and both distances as one node; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient: Tensor | None,
        hgp: Tensor | None,
        batch: HeadBatch,
        gram: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the loss and the distances, zero where there is no reference."""
        ctx.save_for_backward(features, weight, bias, gradient, hgp)  # so that autograd notices writes in between
        form = (GramForm if gram else DirectForm)(batch, gradient, hgp)
        ctx.batch, ctx.form = batch, form
        distances = (form.gradient_distance, form.hgp_distance)
        form.gradient_distance = form.hgp_distance = None  # an output held by its own node would be a reference cycle
        first, second = (features.new_zeros(()) if distance is None else distance for distance in distances)
        return batch.loss, first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, by_gradient: Tensor, by_hgp: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate by features, weight and bias."""
        features, weight, *_ = ctx.saved_tensors
        batch: HeadBatch = ctx.batch
        residuals_BC = ctx.form.basics.mean_residuals
        half_residuals_BC = ctx.form.pull(by_gradient, by_hgp)
        to_logits_BC = batch.curve(half_residuals_BC).mul_(2 / batch.size).addcmul_(residuals_BC, by_loss)
        to_features = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_features = to_logits_BC @ weight
            ctx.form.add_to_features(to_features)
        if ctx.needs_input_grad[1]:
            to_weight = to_logits_BC.T @ features
        if ctx.needs_input_grad[2]:
            to_bias = to_logits_BC.sum(0)
        return to_features, to_weight, to_bias, None, None, None, None


def _expand(batch: HeadBatch, left: Tensor, images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return z-hat (left^T z-hat - r)^T, (B, C), and ||left^T z-hat - r||^2, (), given images = M left."""
    projection_BC = batch.project(reference)
    own, other = (left * images).sum(), _square(reference)
    distance = own - 2 * (left * projection_BC).sum() + other
    floor = NOISE * torch.finfo(distance.dtype).eps * (own + other)
    return images - projection_BC, torch.where(distance > floor, distance, torch.zeros_like(distance))


def _square(matrix: Tensor) -> Tensor:
    """Squared Frobenius norm, row by row: one sum over 10^6 entries (dot, vector_norm) would lose hundreds of eps."""
    rows: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return rows.square().sum()
