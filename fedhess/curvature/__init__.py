"""Gradients and Hessians of the classifier head in closed form, and their distances to references.

The input is a :class:`HeadBatch`: features (B, D), labels (B,), weight (C, D) and bias (C,). Results have the head's
shape (C, K), K = D + 1, or are scalars. No function reads a file, draws from a global generator or knows a federation.
"""

from fedhess.curvature.closed_form import (
    gradient_variance,
    head_gradient,
    head_hvp,
    hessian_diagonal,
    hessian_gradient_product,
    hutchinson_diagonal,
    spectral_distance,
)
from fedhess.curvature.distances import HeadTerms, head_objective
from fedhess.curvature.head_batch import HeadBatch, mean_loss
from fedhess.curvature.lanczos import dominant_eigenvector

__all__ = [
    "HeadBatch",
    "HeadTerms",
    "dominant_eigenvector",
    "gradient_variance",
    "head_gradient",
    "head_hvp",
    "head_objective",
    "hessian_diagonal",
    "hessian_gradient_product",
    "hutchinson_diagonal",
    "mean_loss",
    "spectral_distance",
]
