"""The statistics and distances of :mod:`fedhess.curvature` for any head, by automatic differentiation.

For heads that are not linear. Every statistic is a flat vector (P,) in the order of ``head.parameters()``; for a
``torch.nn.Linear`` that is the (C, D) weight row by row, then the (C,) bias. All are differentiable once more, with
respect to features and head, so that they serve as penalties. The loss is the mean cross-entropy, or the mean logistic
loss for a head with one output. Costs are those of double backward: :data:`EQUIVALENT` is a fallback, not a choice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedhess.curvature import closed_form, distances
from fedhess.curvature.distances import HeadTerms
from fedhess.curvature.lanczos import dominant_eigenvector
from fedhess.curvature.module_batch import ModuleBatch, flat_grad, flat_rows
from fedhess.curvature.probes import check_probes, draw_signs

__all__ = [
    "EQUIVALENT",
    "ModuleBatch",
    "alignment_distances",
    "diagonal_distance",
    "gradient_distance",
    "gradient_variance",
    "head_gradient",
    "head_hvp",
    "head_objective",
    "hessian_diagonal",
    "hessian_gradient_product",
    "hgp_distance",
    "hutchinson_diagonal",
    "spectral_distance",
]

ROWS = 64  # rows of a Jacobian or Hessian that are computed together


def head_gradient(batch: ModuleBatch) -> Tensor:
    """Compute the gradient of the mean loss, (P,); see :func:`fedhess.curvature.head_gradient`."""
    return _finish(lambda: _gradient(batch)[0])


def head_hvp(batch: ModuleBatch, vector: Tensor) -> Tensor:
    """Multiply the Hessian of the mean loss by a vector, (P,); see :func:`fedhess.curvature.head_hvp`.

    Raises:
        ValueError: If ``vector`` is not of shape (P,).
    """

    def compute() -> Tensor:
        gradient, parameters = _gradient(batch)
        _check("vector", vector, gradient)
        return flat_grad(gradient, parameters, vector)

    return _finish(compute)


def hessian_gradient_product(batch: ModuleBatch) -> Tensor:
    """Compute H[g], (P,); see :func:`fedhess.curvature.hessian_gradient_product`. Differentiable through H and g."""

    def compute() -> Tensor:
        gradient, parameters = _gradient(batch)
        return flat_grad(gradient, parameters, gradient)

    return _finish(compute)


def hessian_diagonal(batch: ModuleBatch) -> Tensor:
    """Compute the exact diagonal of the Hessian, (P,), from P double-backward products; see :mod:`fedhess.curvature`.

    For a head with many parameters use :func:`hutchinson_diagonal`.
    """

    def compute() -> Tensor:
        gradient, parameters = _gradient(batch)
        count = gradient.numel()
        pieces = []
        for first in range(0, count, ROWS):
            size = min(ROWS, count - first)
            rows = torch.eye(count, dtype=gradient.dtype, device=gradient.device)[first : first + size]
            pieces.append(flat_rows(gradient, parameters, rows)[:, first : first + size].diagonal())
        return torch.cat(pieces)

    return _finish(compute)


def hutchinson_diagonal(batch: ModuleBatch, *, probes: int, generator: torch.Generator) -> Tensor:
    """Estimate the Hessian's diagonal from random signs, (P,); see :func:`fedhess.curvature.hutchinson_diagonal`.

    Raises:
        ValueError: If ``probes`` is less than 1.
    """
    check_probes(probes)

    def compute() -> Tensor:
        gradient, parameters = _gradient(batch)
        total = torch.zeros_like(gradient)
        for first in range(0, probes, ROWS):
            count = min(ROWS, probes - first)
            signs = draw_signs(count, (gradient.numel(),), generator).to(gradient)
            total = total + (signs * flat_rows(gradient, parameters, signs)).sum(0)
        return total / probes

    return _finish(compute)


def gradient_variance(batch: ModuleBatch) -> Tensor:
    """Compute the variance over examples of the gradient, (P,); see :func:`fedhess.curvature.gradient_variance`."""

    def compute() -> Tensor:
        losses_B, parameters = batch.example_losses()
        count = losses_B.numel()
        rows = torch.eye(count, dtype=losses_B.dtype, device=losses_B.device)
        chunks = [flat_rows(losses_B, parameters, rows[first : first + ROWS]) for first in range(0, count, ROWS)]
        gradients_BP = torch.cat(chunks)
        return gradients_BP.square().mean(0) - gradients_BP.mean(0).square()

    return _finish(compute)


def spectral_distance(batch_a: ModuleBatch, batch_b: ModuleBatch) -> Tensor:
    """Measure ||H_a - H_b||_2, (), by Lanczos; see :func:`fedhess.curvature.spectral_distance`.

    Raises:
        ValueError: If the heads differ in their number of parameters.
    """
    with torch.enable_grad():
        (gradient_a, parameters_a), (gradient_b, parameters_b) = _gradient(batch_a), _gradient(batch_b)
    _check("batch_b's parameters", gradient_b, gradient_a)

    def difference(vector: Tensor) -> Tensor:
        image_a = flat_grad(gradient_a, parameters_a, vector, create_graph=False)
        return image_a - flat_grad(gradient_b, parameters_b, vector, create_graph=False)

    vector = dominant_eigenvector(difference, gradient_a.detach())
    return (vector * (head_hvp(batch_a, vector) - head_hvp(batch_b, vector))).sum().abs()


def head_objective(batch: ModuleBatch, *, gradient: Tensor | None = None, hgp: Tensor | None = None) -> HeadTerms:
    """Compute loss, ||g - gradient||^2 and ||H[g] - hgp||^2, each (); see ``distances.head_objective``.

    Raises:
        ValueError: If a reference is not of shape (P,).
    """
    if gradient is None and hgp is None:
        loss = batch.loss
        return HeadTerms(loss, torch.zeros_like(loss), torch.zeros_like(loss))

    def compute() -> tuple[Tensor, Tensor, Tensor]:
        losses_B, parameters = batch.example_losses()
        loss = losses_B.mean()
        own = flat_grad(loss, parameters, None)
        distances = [torch.zeros_like(loss), torch.zeros_like(loss)]
        if gradient is not None:
            _check("gradient reference", gradient, own)
            distances[0] = (own - gradient.detach()).square().sum()
        if hgp is not None:
            _check("hgp reference", hgp, own)
            distances[1] = (flat_grad(own, parameters, own) - hgp.detach()).square().sum()
        return loss, distances[0], distances[1]

    if torch.is_grad_enabled():
        return HeadTerms(*compute())
    with torch.enable_grad():
        return HeadTerms(*(term.detach() for term in compute()))


def alignment_distances(batch: ModuleBatch, *, gradient: Tensor, hgp: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ||g - gradient||^2 and ||H[g] - hgp||^2, each (); see ``distances.alignment_distances``."""
    terms = head_objective(batch, gradient=gradient, hgp=hgp)
    return terms.gradient_distance, terms.hgp_distance


def gradient_distance(batch: ModuleBatch, reference: Tensor) -> Tensor:
    """Compute ||g - reference||^2, (); see ``distances.gradient_distance``."""
    return head_objective(batch, gradient=reference).gradient_distance


def hgp_distance(batch: ModuleBatch, reference: Tensor) -> Tensor:
    """Compute ||H[g] - reference||^2, (); see ``distances.hgp_distance``."""
    return head_objective(batch, hgp=reference).hgp_distance


def diagonal_distance(batch: ModuleBatch, reference: Tensor) -> Tensor:
    """Compute ||diag H - reference||^2, (); see ``distances.diagonal_distance``."""
    diagonal = hessian_diagonal(batch)
    _check("diagonal reference", reference, diagonal)
    return (diagonal - reference.detach()).square().sum()


EQUIVALENT: dict[Callable[..., Any], Callable[..., Any]] = {
    closed_form.head_gradient: head_gradient,
    closed_form.head_hvp: head_hvp,
    closed_form.hessian_gradient_product: hessian_gradient_product,
    closed_form.hessian_diagonal: hessian_diagonal,
    closed_form.hutchinson_diagonal: hutchinson_diagonal,
    closed_form.gradient_variance: gradient_variance,
    closed_form.spectral_distance: spectral_distance,
    distances.head_objective: head_objective,
    distances.alignment_distances: alignment_distances,
    distances.gradient_distance: gradient_distance,
    distances.hgp_distance: hgp_distance,
    distances.diagonal_distance: diagonal_distance,
}


def _finish(compute: Callable[[], Tensor]) -> Tensor:
    """Run a computation that differentiates inside; keep its graph only if the caller is recording one."""
    if torch.is_grad_enabled():
        return compute()
    with torch.enable_grad():
        return compute().detach()


def _gradient(batch: ModuleBatch) -> tuple[Tensor, list[Tensor]]:
    losses_B, parameters = batch.example_losses()
    return flat_grad(losses_B.mean(), parameters, None), parameters


def _check(name: str, given: Tensor, like: Tensor) -> None:
    if given.shape != like.shape:
        raise ValueError(
            f"{name}: expected a flat vector of shape {tuple(like.shape)} in the order of head.parameters(), got "
            f"{tuple(given.shape)}; take it from the same head"
        )
