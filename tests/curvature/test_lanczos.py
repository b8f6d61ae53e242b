"""The dominant eigenvector against dense eigendecompositions."""

import pytest
import torch

from fedhess.curvature import lanczos
from fedhess.curvature.lanczos import dominant_eigenvector


def symmetric(size: int) -> torch.Tensor:
    square = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return square + square.T


def eigenvalue(matrix: torch.Tensor) -> float:
    vector = dominant_eigenvector(lambda v: matrix @ v, matrix[0])
    assert vector.norm().item() == pytest.approx(1.0)
    return (vector @ matrix @ vector).item()


@pytest.mark.parametrize("size", [1, 2, 17, 150])
@pytest.mark.parametrize("sign", [1, -1])
def test_eigenvalue_of_largest_magnitude_is_found(size, sign):
    matrix = sign * symmetric(size)
    values = torch.linalg.eigvalsh(matrix)
    assert eigenvalue(matrix) == pytest.approx(values[values.abs().argmax()].item(), rel=1e-10)


def test_a_small_basis_restarts_until_it_has_converged(monkeypatch):
    monkeypatch.setattr(lanczos, "LONGEST_BASIS", 6)
    matrix = symmetric(60)
    assert abs(eigenvalue(matrix)) == pytest.approx(torch.linalg.eigvalsh(matrix).abs().max().item(), rel=1e-10)


def test_multiple_eigenvalues_and_zero_operators_end():
    assert eigenvalue(torch.eye(30, dtype=torch.float64) * -2) == pytest.approx(-2)
    assert eigenvalue(torch.zeros(30, 30, dtype=torch.float64)) == 0


def test_the_start_is_the_same_every_time():
    matrix = symmetric(40)
    vectors = [dominant_eigenvector(lambda v: matrix @ v, matrix[0]) for _ in range(2)]
    assert torch.equal(*vectors)
