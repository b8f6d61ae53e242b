"""The two ways to evaluate and differentiate a head's loss and its distances to fixed references, as one autograd node.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).
Symbols: R residuals, M = z-hat z-hat^T, U = z-hat G^T = M R / B, S = curve(U), H[G] = S^T z-hat / B, r a reference.
As curve is linear and symmetric in U, a derivative V by S becomes curve(V) by U; the derivative by the logits is
curve(derivative by R + derivative of S by P). :mod:`fedhess.penalties` says when which form is used and why.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedhess.curvature import HeadBatch, head_gradient

NOISE = 8.0  # an expanded distance below NOISE * eps * (||G||^2 + ||r||^2) is rounding, and given as 0


class Form(Protocol):
    """Distances of one batch to its references, and their derivatives."""

    distances: tuple[Tensor, Tensor]

    def pull(self, by_gradient: Tensor, by_hgp: Tensor, *, to_inputs: bool) -> tuple[Tensor, Tensor | None]:
        """Return the derivative by R and P before ``curve``, (B, C), and the one by the features, (B, D), if wanted."""


class DirectForm:
    """Build G and H[G], (C, K), and subtract: for few classes, or batches too large for a Gram matrix."""

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.batch = batch
        self.gradient_CK = head_gradient(batch)
        zero = batch.features.new_zeros(())
        self.gradient_gap_CK = None if gradient is None else self.gradient_CK - gradient
        self.hgp_gap_CK: Tensor | None = None
        if hgp is not None:
            self.directions_BC = batch.inputs @ self.gradient_CK.T
            self.curved_BC = batch.curve(self.directions_BC)
            self.hgp_gap_CK = torch.sub(self.curved_BC.T @ batch.inputs / batch.size, hgp)
        gaps = (self.gradient_gap_CK, self.hgp_gap_CK)
        self.distances = tuple(zero if gap is None else _dot(gap, gap) for gap in gaps)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor, *, to_inputs: bool) -> tuple[Tensor, Tensor | None]:
        """See :class:`Form`."""
        batch, inputs_BK, features = self.batch, self.batch.inputs, self.batch.features
        to_gradient_CK = torch.zeros_like(self.gradient_CK)
        if self.gradient_gap_CK is not None:
            to_gradient_CK += 2 * by_gradient * self.gradient_gap_CK
        through_BC: Tensor | None = None
        to_features_BD: Tensor | None = torch.zeros_like(features) if to_inputs else None
        if self.hgp_gap_CK is not None:
            scale = 2 * by_hgp / batch.size
            to_curved_BC = inputs_BK @ (scale * self.hgp_gap_CK).T
            to_directions_BC = batch.curve(to_curved_BC)
            to_gradient_CK += to_directions_BC.T @ inputs_BK
            through_BC = _curve_pullback(batch, self.directions_BC, to_curved_BC)
            if to_features_BD is not None:
                to_features_BD.addmm_(to_directions_BC, _columns(self.gradient_CK, features))
                to_features_BD.addmm_(scale * self.curved_BC, _columns(self.hgp_gap_CK, features))
        to_residuals_BC = inputs_BK @ to_gradient_CK.T / batch.size
        if to_features_BD is not None:
            to_features_BD.addmm_(batch.residuals / batch.size, _columns(to_gradient_CK, features))
        return to_residuals_BC if through_BC is None else to_residuals_BC + through_BC, to_features_BD


class GramForm:
    """Expand the squares through M, (B, B): for many classes. Never builds a (C, K) matrix."""

    def __init__(self, batch: HeadBatch, gradient: Tensor | None, hgp: Tensor | None) -> None:
        self.batch, self.gradient, self.hgp = batch, gradient, hgp
        residuals_BC, zero = batch.residuals, batch.features.new_zeros(())
        self.directions_BC = batch.gram @ residuals_BC / batch.size
        gradient_distance = hgp_distance = zero
        if gradient is not None:
            self.gradient_gap_BC = self.directions_BC - batch.inputs @ gradient.T
            gradient_distance = _expand(batch, residuals_BC, self.directions_BC, self.gradient_gap_BC, gradient)
        if hgp is not None:
            self.curved_BC = batch.curve(self.directions_BC)
            images_BC = batch.gram @ self.curved_BC / batch.size
            self.hgp_gap_BC = images_BC - batch.inputs @ hgp.T
            hgp_distance = _expand(batch, self.curved_BC, images_BC, self.hgp_gap_BC, hgp)
        self.distances = (gradient_distance, hgp_distance)

    def pull(self, by_gradient: Tensor, by_hgp: Tensor, *, to_inputs: bool) -> tuple[Tensor, Tensor | None]:
        """See :class:`Form`."""
        batch, residuals_BC, features = self.batch, self.batch.residuals, self.batch.features
        to_residuals_BC = torch.zeros_like(residuals_BC)
        mixing_BB = torch.zeros_like(batch.gram)
        to_features_BD: Tensor | None = torch.zeros_like(features) if to_inputs else None
        if self.gradient is not None:
            scale = 2 * by_gradient / batch.size
            to_residuals_BC += scale * self.gradient_gap_BC
            scaled_BC = scale * residuals_BC
            if to_features_BD is not None:
                to_features_BD.addmm_(scaled_BC, _columns(self.gradient, features), alpha=-1)
                mixing_BB.addmm_(scaled_BC, residuals_BC.T)
        if self.hgp is not None:
            scale = 2 * by_hgp / batch.size
            to_curved_BC = scale * self.hgp_gap_BC
            to_directions_BC = batch.curve(to_curved_BC)
            to_residuals_BC += batch.gram @ to_directions_BC / batch.size
            to_residuals_BC += _curve_pullback(batch, self.directions_BC, to_curved_BC)
            if to_features_BD is not None:
                scaled_BC = scale * self.curved_BC
                to_features_BD.addmm_(scaled_BC, _columns(self.hgp, features), alpha=-1)
                crossed_BB = to_directions_BC @ residuals_BC.T
                mixing_BB.addmm_(scaled_BC, self.curved_BC.T).add_(crossed_BB).add_(crossed_BB.T)
        if to_features_BD is not None:
            to_features_BD.addmm_(mixing_BB / batch.size, features)
        return to_residuals_BC, to_features_BD


class HeadTerms(torch.autograd.Function):
    """Loss and both distances as one node with a hand-written backward; differentiable once."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes arguments by position
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient: Tensor | None,
        hgp: Tensor | None,
        batch: HeadBatch,
        form: type[DirectForm] | type[GramForm],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the loss and the distances."""
        ctx.save_for_backward(features, weight, bias, gradient, hgp)  # so that autograd notices writes in between
        ctx.batch, ctx.form = batch, form(batch, gradient, hgp)
        return (batch.loss.clone(), *ctx.form.distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, by_gradient: Tensor, by_hgp: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate by features, weight and bias."""
        features, weight, *_ = ctx.saved_tensors
        batch: HeadBatch = ctx.batch
        to_residuals_BC, to_features_BD = ctx.form.pull(by_gradient, by_hgp, to_inputs=ctx.needs_input_grad[0])
        to_logits_BC = torch.addcmul(batch.curve(to_residuals_BC), batch.residuals, by_loss / batch.size)
        if to_features_BD is not None:
            to_features_BD.addmm_(to_logits_BC, weight)
        to_weight = to_logits_BC.T @ features if ctx.needs_input_grad[1] else None
        to_bias = to_logits_BC.sum(0) if ctx.needs_input_grad[2] else None
        return to_features_BD, to_weight, to_bias, None, None, None, None


def _expand(batch: HeadBatch, left: Tensor, images: Tensor, gap: Tensor, reference: Tensor) -> Tensor:
    """Return ||left^T z-hat / B - r||^2 from images = M left / B and gap = images - z-hat r^T, 0 where it is noise."""
    own = _dot(left, images) / batch.size
    reference_square = _dot(reference, reference)
    # <left, gap> = ||own||^2 - <own, r>, and <left, images - gap> = <own, r>
    distance = _dot(left, 2 * gap - images) / batch.size + reference_square
    floor = NOISE * torch.finfo(distance.dtype).eps * (own + reference_square)
    return torch.where(distance > floor, distance, torch.zeros_like(distance))


def _curve_pullback(batch: HeadBatch, directions: Tensor, to_curved: Tensor) -> Tensor:
    """Derivative of <to_curved, curve(directions)> by P with directions held fixed, up to what ``curve`` then drops."""
    probabilities_BC = batch.probabilities
    if batch.is_logistic:
        return to_curved * directions * (1 - 2 * probabilities_BC)
    centred = directions - (probabilities_BC * directions).sum(1, keepdim=True)
    return to_curved * centred - directions * (probabilities_BC * to_curved).sum(1, keepdim=True)


def _columns(parameters: Tensor, features: Tensor) -> Tensor:
    return parameters[:, : features.shape[1]]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return torch.dot(left.reshape(-1), right.reshape(-1))
