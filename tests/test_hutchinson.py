"""Hutchinson's estimator: unbiased, exact where it can be, and the same probes for every domain."""

import pytest
import torch
from head_cases import make_head
from hypothesis import settings
from torch import Tensor

from fedhess import curvature
from fedhess.curvature import HeadBatch

many = settings(max_examples=30, deadline=None, derandomize=True)


def test_hutchinson_is_unbiased():
    head = make_head(8, 5, 4, scale=0.5)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        batch = head.batch
        singles = torch.stack(
            [curvature.hutchinson_diagonal(batch, probes=1, generator=generator) for _ in range(4000)]
        )
        exact = curvature.hessian_diagonal(batch)
    standard_errors = singles.std(0) / len(singles) ** 0.5
    assert ((singles.mean(0) - exact).abs() <= 4.5 * standard_errors + 1e-12).all()


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    features = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    batch = HeadBatch(features, torch.tensor([0, 1, 1]), torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64))
    estimate = curvature.hutchinson_diagonal(batch, probes=1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, curvature.hessian_diagonal(batch), rtol=1e-14, atol=0)


def test_equal_seeds_give_equal_probes_to_every_domain_and_dtype():
    estimates = []
    for examples, dtype in ((3, torch.float64), (3, torch.float32), (9, torch.float64)):
        # Equal examples: the Hessian, and so the estimate from equal probes, is the same whatever their number.
        features = torch.tensor([[1.0, 2.0, 4.0]], dtype=dtype).repeat(examples, 1)
        batch = HeadBatch(features, torch.zeros(examples, dtype=torch.int64), torch.zeros(2, 3, dtype=dtype))
        generator = torch.Generator().manual_seed(4)
        estimates.append(curvature.hutchinson_diagonal(batch, probes=5, generator=generator).double())
    torch.testing.assert_close(estimates[0], estimates[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimates[0], estimates[2])
    generator = torch.Generator().manual_seed(6)
    assert (curvature.hutchinson_diagonal(batch, probes=5, generator=generator) - estimates[0]).abs().max() > 0.1


@pytest.mark.parametrize("recording", [True, False])
def test_hutchinson_in_chunks_equals_one_chunk_and_moves_the_generator_on(monkeypatch, recording):
    head = make_head(4, 3, 2)
    results = []
    for elements in (10**6, 20):
        monkeypatch.setattr(curvature, "PROBE_ELEMENTS", elements)
        generator = torch.Generator().manual_seed(0)
        with torch.set_grad_enabled(recording):
            estimate = curvature.hutchinson_diagonal(head.batch, probes=7, generator=generator)
            again = curvature.hutchinson_diagonal(head.batch, probes=7, generator=generator)
        assert not torch.equal(estimate, again)
        pulled = torch.autograd.grad(estimate.square().sum(), head.theta)[0] if recording else estimate
        results.append((estimate, again, pulled))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_hutchinson_keeps_no_probes_for_backward():
    head = make_head(4, 30, 2)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        curvature.hutchinson_diagonal(head.batch, probes=50, generator=torch.Generator().manual_seed(0))
    assert 0 < max(kept, default=1) < 50 * head.theta.numel()
