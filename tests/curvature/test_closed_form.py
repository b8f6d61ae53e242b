"""Closed forms against double backward, in float64."""

import math

import oracles
import pytest
import torch
from head_cases import heads, like_theta, make_head
from hypothesis import given, settings
from torch import Tensor

from fedhess.curvature import HeadBatch, closed_form


def assert_equal(ours: Tensor, oracle: Tensor) -> None:
    """Equal to rtol 1e-10; what a saturated softmax cancels to less than 1e-12 of the inputs' order 1 is rounding."""
    assert ours.shape == oracle.shape
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12 * max(1.0, oracle.detach().abs().max().item()))


def assert_equal_with_derivatives(head: oracles.Head, ours: Tensor, oracle: Tensor) -> None:
    assert_equal(ours, oracle)
    weights = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(5))
    inputs = [head.features, head.theta]
    mine = torch.autograd.grad((weights * ours).sum(), inputs)
    theirs = torch.autograd.grad((weights * oracle).sum(), inputs, materialize_grads=True)
    for got, expected in zip(mine, theirs, strict=True):
        assert_equal(got, expected)


def probed(batch: HeadBatch) -> Tensor:
    return closed_form.hutchinson_diagonal(batch, probes=4, generator=torch.Generator().manual_seed(3))


def probed_by_double_backward(head: oracles.Head) -> Tensor:
    signs = closed_form.draw_signs(4, tuple(head.theta.shape), torch.Generator().manual_seed(3)).double()
    return oracles.hutchinson_by_double_backward(head, signs)


STATISTICS = {
    "gradient": (closed_form.head_gradient, oracles.gradient),
    "hgp": (closed_form.hessian_gradient_product, oracles.hgp),
    "diagonal": (closed_form.hessian_diagonal, oracles.diagonal),
    "variance": (closed_form.gradient_variance, oracles.variance),
    "probed": (probed, probed_by_double_backward),
}


@pytest.mark.parametrize("name", STATISTICS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(head=heads())
def test_closed_form_and_its_derivatives_match_autograd(name, head):
    ours, oracle = STATISTICS[name]
    assert_equal_with_derivatives(head, ours(head.batch), oracle(head))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(heads())
def test_hvp_matches_double_backward(head):
    vector = like_theta(head)
    assert_equal_with_derivatives(head, closed_form.head_hvp(head.batch, vector), oracles.hvp(head, vector))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(heads())
def test_spectral_distance_matches_dense_eigenvalues(head):
    other = make_head(3, head.features.shape[1], head.theta.shape[0], head.has_bias, seed=9)
    ours = closed_form.spectral_distance(head.batch, other.batch)
    oracle = oracles.spectral_norm_of_difference(head, other)
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-13)


def test_spectral_distance_differentiates_like_the_dense_eigenvalue():
    head, other = make_head(5, 4, 3, seed=1), make_head(6, 4, 3, seed=2)
    inputs = [head.features, head.theta, other.features, other.theta]
    mine = torch.autograd.grad(closed_form.spectral_distance(head.batch, other.batch), inputs)
    theirs = torch.autograd.grad(oracles.spectral_norm_of_difference(head, other), inputs)
    for got, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-10)


def test_spectral_distance_without_compression_matches_dense_eigenvalues():
    head, other = make_head(40, 4, 3, seed=1), make_head(50, 4, 3, seed=2)
    ours = closed_form.spectral_distance(head.batch, other.batch)
    torch.testing.assert_close(ours, oracles.spectral_norm_of_difference(head, other), rtol=1e-10, atol=0)


def test_spectral_distance_needs_no_dense_hessian_at_65_classes():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(65, 2048, generator=generator) / 45
    batches = [
        HeadBatch(torch.randn(32, 2048, generator=generator), torch.zeros(32, dtype=torch.int64), weight, weight[:, 0])
        for _ in range(2)
    ]
    largest = _largest_tensor(lambda: closed_form.spectral_distance(*batches))
    assert largest <= 130 * 65 * 64  # a Lanczos basis in the span of the 64 inputs; dense would be (65 * 2049)^2


def _largest_tensor(compute) -> int:
    """Count the elements of the largest tensor that any operation returns."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else (out,)
            sizes.extend(part.numel() for part in parts if isinstance(part, Tensor))
            return out

    with Watch():
        compute()
    return max(sizes)


@pytest.mark.parametrize("name", STATISTICS)
def test_no_statistic_allocates_a_dense_hessian(name):
    head = make_head(4, 50, 6)
    assert _largest_tensor(lambda: STATISTICS[name][0](head.batch)) < head.theta.numel() ** 2 / 10


def test_hutchinson_error_falls_with_the_square_root_of_the_probes():
    head = make_head(8, 5, 4, scale=0.5)
    with torch.no_grad():
        batch = head.batch
        exact = closed_form.hessian_diagonal(batch)

        def error(probes: int) -> float:
            estimates = [
                closed_form.hutchinson_diagonal(batch, probes=probes, generator=torch.Generator().manual_seed(seed))
                for seed in range(40)
            ]
            return (torch.stack(estimates) - exact).square().mean().sqrt().item()

        few, many_probes = error(16), error(16 * 64)
    assert few / many_probes == pytest.approx(math.sqrt(64), rel=0.2)


def test_statistics_leave_the_global_generator_alone():
    head = make_head(4, 3, 2)
    before = torch.get_rng_state()
    closed_form.hutchinson_diagonal(head.batch, probes=3, generator=torch.Generator().manual_seed(0)).sum().backward()
    closed_form.spectral_distance(head.batch, make_head(4, 3, 2, seed=8).batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("outputs", [1, 3])
def test_extreme_logits_give_finite_values_and_derivatives(outputs):
    head = make_head(4, 3, outputs, scale=1e4)
    head.features = head.features.detach().float().requires_grad_()
    head.theta = head.theta.detach().float().requires_grad_()
    values = [ours(head.batch) for ours, _ in STATISTICS.values()]
    for value in (*values, closed_form.spectral_distance(head.batch, head.batch)):
        pulled = torch.autograd.grad(value.sum(), [head.features, head.theta])
        assert value.dtype == torch.float32
        assert all(part.isfinite().all() for part in (value, *pulled))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_device_follow_the_input(device, dtype, request):
    if device == "cuda":
        request.getfixturevalue("cuda")
    double = make_head(5, 4, 3)
    features, theta = (part.detach().to(device, dtype) for part in (double.features, double.theta))
    batch = HeadBatch(features, double.labels.to(device), theta[:, :-1], theta[:, -1])
    results = [closed_form.head_hvp(batch, theta), *(ours(batch) for ours, _ in STATISTICS.values())]
    assert all((result.dtype, result.device) == (dtype, batch.features.device) for result in results)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    for name, (ours, oracle) in STATISTICS.items():
        exact = oracle(double).detach()
        assert (ours(batch).cpu().double() - exact).norm() <= tolerance * exact.norm(), name


def test_hvp_names_a_vector_of_the_wrong_shape():
    head = make_head(4, 3, 2)
    with pytest.raises(ValueError, match=r"vector: expected torch.float64 of shape \(2, 4\).*got .*\(2, 3\).*bias"):
        closed_form.head_hvp(head.batch, torch.zeros(2, 3, dtype=torch.float64))


def test_hutchinson_refuses_no_probes():
    with pytest.raises(ValueError, match="probes: expected at least 1, got 0; the paper draws"):
        closed_form.hutchinson_diagonal(make_head(4, 3, 2).batch, probes=0, generator=torch.Generator())


def test_spectral_distance_refuses_heads_of_different_shape():
    with pytest.raises(ValueError, match=r"batch_b: expected a head of shape \(2, 4\) like batch_a, got \(3, 4\)"):
        closed_form.spectral_distance(make_head(4, 3, 2).batch, make_head(4, 3, 3).batch)
