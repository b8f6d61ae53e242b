"""Statistics of a head as means of per-example terms, each clipped to a bound: no per-example backward.

Example b contributes the outer product of a vector a_b over the classes, (C,), and x_b over the inputs, (K,):

================ ==================================== ========
statistic        a_b                                  x_b
================ ==================================== ========
gradient         R_b                                  z-hat_b
HVP H[V]         P_b*U_b - P_b <P_b, U_b>, U = Z V^T  z-hat_b
Hessian diagonal P_b*(1-P_b)                          z-hat_b^2
================ ==================================== ========

The product's Frobenius norm is ||a_b|| ||x_b||, so no term is built. Symbols: :mod:`fedhess.curvature.closed_form`.
"""

from collections.abc import Callable
from functools import lru_cache, wraps

from torch import Tensor

from fedhess.curvature.closed_form import head_gradient, head_hvp, hessian_diagonal
from fedhess.curvature.head_batch import HeadBatch

Factors = tuple[Tensor, Tensor]  # a, (B, C), and x, (B, K)


def _of_gradient(batch: HeadBatch) -> Factors:
    return batch.basics.mean_residuals * batch.size, batch.basics.inputs


def _of_hvp(batch: HeadBatch, vector: Tensor) -> Factors:
    batch.check_like_parameters("vector", vector)
    basics = batch.basics
    return basics.curve(basics.inputs @ vector.T) * batch.size, basics.inputs


def _of_diagonal(batch: HeadBatch) -> Factors:
    inputs_BK, _, probabilities_BC, _ = batch.basics
    return probabilities_BC * (1 - probabilities_BC), inputs_BK.square()


FACTORS: dict[Callable[..., Tensor], Callable[..., Factors]] = {
    head_gradient: _of_gradient,
    head_hvp: _of_hvp,
    hessian_diagonal: _of_diagonal,
}


@lru_cache(maxsize=32)
def clipped(statistic: Callable[..., Tensor], bound: float) -> Callable[..., Tensor]:
    """Return the statistic with every example's term scaled down to a Frobenius norm of at most ``bound``.

    Replacing one example then changes the mean over B examples by at most ``2 * bound / B``. A term that is not finite
    counts as zero. Everything is computed on the CPU in float64, so that rounding adds nothing to this bound.

    Args:
        statistic: A key of :data:`FACTORS`.
        bound: Greatest norm of a term.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2), torch.zeros(2))
    >>> round(float(clipped(head_gradient, 0.5)(batch).norm()), 6)
    0.5
    """
    factors = FACTORS[statistic]

    @wraps(statistic)
    def mean_of_clipped(batch: HeadBatch, **given: Tensor) -> Tensor:
        over_classes_BC, over_inputs_BK = (factor.cpu().double() for factor in factors(batch, **given))
        norms_B1 = (over_classes_BC.norm(dim=1) * over_inputs_BK.norm(dim=1)).unsqueeze(1)
        scaled_BC = over_classes_BC * (bound / norms_B1).clamp(max=1)
        finite_B1 = norms_B1.isfinite()
        mean_CK: Tensor = scaled_BC.where(finite_B1, 0).T @ over_inputs_BK.where(finite_B1, 0) / batch.size
        return mean_CK

    return mean_of_clipped
