"""The eigenvector of largest |eigenvalue| of a symmetric operator, given its products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

START_SEED = 230811778
BASIS_ELEMENTS = 2**26  # at most this many numbers in the basis: 256 MiB in float32
LONGEST_BASIS = 120
RESTARTS = 40


def dominant_eigenvector(apply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Find a unit eigenvector whose eigenvalue is largest in magnitude, by restarted Lanczos iteration.

    Lanczos with full reorthogonalisation (Golub and Van Loan, Matrix Computations, 10.1 and 10.3): a basis Q of the
    Krylov space of a start vector, T = Q^T A Q tridiagonal, and the Ritz pair (theta, Q s) of largest |theta|. It stops
    when the residual |beta s_last| falls below 64 eps |theta|; a basis that outgrows its budget restarts from the
    Ritz vector. An indefinite operator is fine: both ends of the spectrum converge together. The start vector is drawn
    on the CPU, from its own generator with a fixed seed, so every device gets the same one.

    Args:
        apply: v -> A v for a symmetric A, on tensors shaped like ``like``; linear.
        like: Gives shape, dtype and device of the vectors.

    Returns:
        A tensor of norm 1 shaped like ``like``. If A is zero, any unit vector.

    >>> diagonal = torch.tensor([1.0, -3.0, 2.0])
    >>> dominant_eigenvector(lambda v: diagonal * v, diagonal).abs().round(decimals=4)
    tensor([0., 1., 0.])
    """
    generator = torch.Generator().manual_seed(START_SEED)
    start = torch.randn(like.numel(), generator=generator, dtype=torch.float64)
    vector = torch.nn.functional.normalize(start, dim=0).to(like)
    for _ in range(RESTARTS):
        vector, converged = _lanczos_cycle(lambda v: apply(v.view(like.shape)).reshape(-1), vector)
        if converged:
            break
    return vector.view(like.shape)


def _lanczos_cycle(apply: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, bool]:
    """Grow one basis from ``start`` and return its best Ritz vector and whether that has converged."""
    dimension = start.numel()
    length = min(dimension, LONGEST_BASIS, max(20, BASIS_ELEMENTS // dimension))
    epsilon = torch.finfo(start.dtype).eps
    basis = start.new_empty(length, dimension)
    basis[0] = start
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(length):
        image = apply(basis[step])
        diagonal.append(float(torch.dot(image, basis[step])))
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough: the classical Gram-Schmidt rule of Kahan and Parlett
            image = image - known.T @ (known @ image)
        norm = float(torch.linalg.vector_norm(image))
        value, mixture, last = _dominant_ritz_pair(diagonal, beside)
        exhausted = step + 1 == dimension or norm <= 4 * epsilon * abs(value)
        if exhausted or norm * abs(last) <= 64 * epsilon * abs(value):
            return _combine(known, mixture), True
        if step + 1 < length:
            beside.append(norm)
            basis[step + 1] = image / norm
    return _combine(basis, mixture), False


def _dominant_ritz_pair(diagonal: list[float], beside: list[float]) -> tuple[float, Tensor, float]:
    """Return the eigenpair of largest |eigenvalue| of a symmetric tridiagonal matrix and its vector's last entry."""
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        tridiagonal = tridiagonal + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    best = int(values.abs().argmax())
    return float(values[best]), vectors[:, best], float(vectors[-1, best])


def _combine(basis: Tensor, mixture: Tensor) -> Tensor:
    return torch.nn.functional.normalize(mixture.to(basis) @ basis, dim=0)
