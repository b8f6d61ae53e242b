"""Means of clipped per-example terms, against the statistic of each example by double backward."""

import oracles
import pytest
import torch
from head_cases import heads, like_theta
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhess.curvature import HeadBatch, head_gradient, head_hvp, hessian_diagonal
from fedhess.curvature.per_example import clipped

ORACLES = {head_gradient: oracles.gradient, head_hvp: oracles.hvp, hessian_diagonal: oracles.diagonal}


def value(statistic, head: oracles.Head, bound: float) -> Tensor:
    given = {"vector": like_theta(head)} if statistic is head_hvp else {}
    return clipped(statistic, bound)(head.batch, **given)


def one_by_one(statistic, head: oracles.Head) -> list[Tensor]:
    terms = []
    for index in range(len(head.labels)):
        alone = oracles.Head(head.features[index, None], head.labels[index, None], head.theta, head.has_bias)
        terms.append(ORACLES[statistic](alone, *([like_theta(head)] if statistic is head_hvp else [])).detach())
    return terms


@pytest.mark.parametrize("statistic", ORACLES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(head=heads(), bound=st.sampled_from([0.01, 0.5, 1e9]))
def test_each_example_is_clipped_by_itself(statistic, head, bound):
    terms = [term * min(1.0, bound / max(float(term.norm()), 1e-300)) for term in one_by_one(statistic, head)]
    torch.testing.assert_close(value(statistic, head, bound), torch.stack(terms).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("statistic", ORACLES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(head=heads(), size=st.sampled_from([1e-3, 1.0, 1e8]))
def test_replacing_an_example_moves_the_mean_by_no_more_than_the_sensitivity(statistic, head, size):
    bound = 0.3
    features, labels = head.features.detach().clone(), head.labels.clone()
    features[-1], labels[-1] = -size, int(head.theta.shape[0] > 1)
    other = oracles.Head(features, labels, head.theta, head.has_bias)
    moved = (value(statistic, head, bound) - value(statistic, other, bound)).norm()
    assert moved <= 2 * bound / len(head.labels) * (1 + 1e-12)


def test_an_example_that_is_not_finite_counts_as_zero() -> None:
    features, labels = torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]), torch.tensor([1, 0])
    weight = torch.zeros(2, 2)
    both = clipped(head_gradient, 1e9)(HeadBatch(features, labels, weight))
    alone = head_gradient(HeadBatch(features[:1], labels[:1], weight))
    torch.testing.assert_close(both, alone.double() / 2)
