"""A head's loss and its squared distances to fixed references as one autograd node with a hand-written backward.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).

Symbols: R' = R / B, so that G = R'^T z-hat; M = z-hat z-hat^T; U = z-hat G^T = M R'; S = curve(U), so that
H[G] = S^T z-hat / B. As curve is linear and symmetric in U, a derivative V by S becomes curve(V) by U, and the
derivative by the logits is curve(derivative by R + derivative of S by P). Derivatives are named ``to_``:
``to_logits_BC`` is the objective's derivative by the logits. :mod:`fedhess.penalties` says when which form is used.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedhess.curvature import HeadBatch, head_gradient

NOISE = 8.0  # in eps * (||G||^2 + ||r||^2): an expanded distance below it is rounding (measured: up to 1.5), given as 0


class DirectForm:
    """Build G and H[G], (C, K), and subtract: for few classes, or a batch too large for a Gram matrix.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Reference of G, (C, K), or None.
        hgp: Reference of H[G], (C, K), or None.
    """

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.batch = batch
        self.gradient_gap_CK = self.hgp_gap_CK = None
        self.gradient_distance = self.hgp_distance = batch.features.new_zeros(())
        self.gradient_CK = head_gradient(batch)
        if gradient is not None:
            self.gradient_gap_CK = self.gradient_CK - gradient
            self.gradient_distance = _square(self.gradient_gap_CK)
        if hgp is not None:
            inputs_BK = batch.basics.inputs
            self.directions_BC = inputs_BK @ self.gradient_CK.T
            self.curved_BC = batch.curve(self.directions_BC).div_(batch.size)
            self.hgp_gap_CK = (self.curved_BC.T @ inputs_BK).sub_(hgp)
            self.hgp_distance = _square(self.hgp_gap_CK)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor, *, wants_features: bool) -> tuple[Tensor, Tensor | None]:
        """Return the derivative by R, (B, C), and the one by the features past the logits, (B, D), if wanted."""
        batch, width = self.batch, self.batch.features.shape[1]
        inputs_BK, _, _, residuals_BC = batch.basics
        to_gradient_CK: Tensor | None = None
        to_features_BD: Tensor | None = None
        if self.gradient_gap_CK is not None:
            to_gradient_CK = self.gradient_gap_CK * (2 * by_gradient)
        through_BC: Tensor | None = None
        if self.hgp_gap_CK is not None:
            to_hgp_CK = self.hgp_gap_CK * (2 * by_hgp)
            to_curved_BC = (inputs_BK @ to_hgp_CK.T).div_(batch.size)
            to_directions_BC, through_BC = _pull_curve(batch, self.directions_BC, to_curved_BC)
            pulled_CK = to_directions_BC.T @ inputs_BK
            to_gradient_CK = pulled_CK if to_gradient_CK is None else to_gradient_CK.add_(pulled_CK)
            if wants_features:
                to_features_BD = to_directions_BC @ self.gradient_CK[:, :width]
                to_features_BD.addmm_(self.curved_BC, to_hgp_CK[:, :width])
        assert to_gradient_CK is not None, "without references there is nothing to pull back"
        if wants_features:
            pulled_BD = residuals_BC @ to_gradient_CK[:, :width]
            to_features_BD = pulled_BD if to_features_BD is None else to_features_BD.add_(pulled_BD)
        to_residuals_BC = (inputs_BK @ to_gradient_CK.T).div_(batch.size)
        return to_residuals_BC if through_BC is None else to_residuals_BC.add_(through_BC), to_features_BD


class GramForm:
    """Expand the squares through M, (B, B), without building G or H[G]: for many classes.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Reference of G, (C, K), or None.
        hgp: Reference of H[G], (C, K), or None.
    """

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.batch, self.gradient, self.hgp = batch, gradient, hgp
        self.gradient_distance = self.hgp_distance = batch.features.new_zeros(())
        residuals_BC = batch.basics.mean_residuals
        self.directions_BC = batch.gram @ residuals_BC
        if gradient is not None:
            self.gradient_gap_BC, self.gradient_distance = _expand(batch, residuals_BC, self.directions_BC, gradient)
        if hgp is not None:
            self.curved_BC = batch.curve(self.directions_BC).div_(batch.size)
            self.hgp_gap_BC, self.hgp_distance = _expand(batch, self.curved_BC, batch.gram @ self.curved_BC, hgp)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor, *, wants_features: bool) -> tuple[Tensor, Tensor | None]:
        """Return the derivative by R, (B, C), and the one by the features past the logits, (B, D), if wanted."""
        batch, residuals_BC = self.batch, self.batch.basics.mean_residuals
        to_residuals_BC = torch.zeros_like(residuals_BC)
        pieces: list[tuple[Tensor, Tensor]] = []
        mixing_BB = torch.zeros_like(batch.gram)
        if self.gradient is not None:
            to_residuals_BC += self.gradient_gap_BC * (2 * by_gradient / batch.size)
            pieces.append((residuals_BC * (2 * by_gradient), self.gradient))
            mixing_BB.addmm_(pieces[-1][0], residuals_BC.T)
        if self.hgp is not None:
            to_curved_BC = self.hgp_gap_BC * (2 * by_hgp / batch.size)
            to_directions_BC, through_BC = _pull_curve(batch, self.directions_BC, to_curved_BC)
            to_residuals_BC.add_(through_BC).addmm_(batch.gram, to_directions_BC, alpha=1 / batch.size)
            pieces.append((self.curved_BC * (2 * by_hgp), self.hgp))
            crossed_BB = to_directions_BC @ residuals_BC.T
            mixing_BB.addmm_(pieces[-1][0], self.curved_BC.T).add_(crossed_BB).add_(crossed_BB.T)
        if not wants_features:
            return to_residuals_BC, None
        to_features_BD = mixing_BB @ batch.features
        for scaled_BC, reference in pieces:
            to_features_BD.addmm_(scaled_BC, reference[:, : batch.features.shape[1]], alpha=-1)
        return to_residuals_BC, to_features_BD


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
        ctx.batch, ctx.form = batch, (GramForm if gram else DirectForm)(batch, gradient, hgp)
        return batch.loss, ctx.form.gradient_distance, ctx.form.hgp_distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, by_gradient: Tensor, by_hgp: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate by features, weight and bias."""
        features, weight, *_ = ctx.saved_tensors
        batch: HeadBatch = ctx.batch
        wants_features, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        to_residuals_BC, to_features = ctx.form.pull(by_gradient, by_hgp, wants_features=wants_features)
        to_logits_BC = batch.curve(to_residuals_BC).addcmul_(batch.basics.mean_residuals, by_loss)
        if to_features is not None:
            to_features.addmm_(to_logits_BC, weight)
        to_weight = to_logits_BC.T @ features if wants_weight else None
        to_bias = to_logits_BC.sum(0) if wants_bias else None
        return to_features, to_weight, to_bias, None, None, None, None


def _expand(batch: HeadBatch, left: Tensor, images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return z-hat (left^T z-hat - r)^T, (B, C), and ||left^T z-hat - r||^2, (), given images = M left."""
    projection_BC = batch.project(reference)
    own, other = (left * images).sum(), _square(reference)
    distance = own - 2 * (left * projection_BC).sum() + other
    floor = NOISE * torch.finfo(distance.dtype).eps * (own + other)
    return images - projection_BC, torch.where(distance > floor, distance, torch.zeros_like(distance))


def _pull_curve(batch: HeadBatch, directions: Tensor, to_curved: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of <to_curved, curve(U)> by U, and by P up to what a following ``curve`` drops; each (B, C)."""
    probabilities_BC = batch.basics.probabilities
    if batch.is_logistic:
        return batch.curve(to_curved), to_curved * directions * (1 - 2 * probabilities_BC)
    products_BC = probabilities_BC * to_curved
    means_B1 = products_BC.sum(1, keepdim=True)
    centred_BC = directions - (probabilities_BC * directions).sum(1, keepdim=True)
    through_BC = torch.addcmul(to_curved * centred_BC, directions, means_B1, value=-1)
    return products_BC.addcmul_(probabilities_BC, means_B1, value=-1), through_BC


def _square(matrix: Tensor) -> Tensor:
    """Squared Frobenius norm, row by row: one sum over 10^6 entries (dot, vector_norm) would lose hundreds of eps."""
    rows: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return rows.square().sum()
