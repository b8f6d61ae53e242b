"""Robust means against their definitions, and that a hostile minority does not move them."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fedhess.alignment.means import DomainMeans, PerDomain, mean_rule
from fedhess.alignment.robust import MEANS, robust_mean


def contributions(count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in (("a", (2, 3)), ("b", (4,)))}
        for _ in range(count)
    ]


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([value.double().flatten().numpy() for value in tensors.values()])


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("factor", [-10.0, 1e6])
def test_a_hostile_minority_leaves_a_mean_among_the_honest(kind: str, factor: float) -> None:
    honest = contributions(5)
    hostile = [{name: factor * value for name, value in each.items()} for each in contributions(2, seed=1)]
    points = np.stack([flat(each) for each in honest])
    spread = np.linalg.norm(points - points.mean(0), axis=1).max()
    found = flat(robust_mean(kind, [*hostile, *honest], hostile=2))
    assert np.linalg.norm(found - points.mean(0)) <= spread
    assert np.linalg.norm(np.mean([flat(each) for each in [*hostile, *honest]], axis=0) - points.mean(0)) > spread


def test_median_and_trimmed_are_those_of_each_value() -> None:
    values = contributions(7)
    points = np.sort(np.stack([flat(each) for each in values]), axis=0)
    np.testing.assert_allclose(flat(robust_mean("median", values, hostile=1)), points[3], rtol=1e-6)
    np.testing.assert_allclose(flat(robust_mean("trimmed", values, hostile=2)), points[2:5].mean(0), rtol=1e-5)


def test_geometric_has_the_least_sum_of_distances() -> None:
    values = [{name: value.double() for name, value in each.items()} for each in contributions(6)]
    points = np.stack([flat(each) for each in values])
    least = minimize(lambda at: np.linalg.norm(points - at, axis=1).sum(), points.mean(0), tol=1e-12)
    np.testing.assert_allclose(flat(robust_mean("geometric", values, hostile=1)), least.x, atol=1e-5)


def test_krum_takes_one_contribution_and_multikrum_the_mean_of_all_but_the_hostile() -> None:
    values = contributions(7)
    values[3] = {name: value + 50 for name, value in values[3].items()}
    points = np.stack([flat(each) for each in values])
    assert any(np.array_equal(flat(robust_mean("krum", values, hostile=1)), point) for point in points)
    others = np.delete(points, 3, axis=0).mean(0)
    np.testing.assert_allclose(flat(robust_mean("multikrum", values, hostile=1)), others, rtol=1e-5)


@pytest.mark.parametrize("kind", MEANS)
def test_one_contribution_keeps_its_bits_and_whole_numbers_are_averaged(kind: str) -> None:
    values = {"weight": torch.randn(3), "count": torch.tensor(7)}
    found = robust_mean(kind, [values], hostile=3)
    assert torch.equal(found["weight"], values["weight"])
    assert found["count"] == 7


def test_a_domain_whose_clients_are_all_hostile_does_not_move_the_mean_over_domains() -> None:
    rule = mean_rule("median", hostile=1)
    means = DomainMeans(["a", "b", "c"], [{"a": 4}, {"a": 4}, {"b": 4}, {"c": 4}], rule)
    for domain, value in (("a", 1e6), ("a", 1e6), ("b", 1.0), ("c", 2.0)):
        means.add(domain, {"gradient": torch.tensor([value])}, 4)
    values = PerDomain(
        {d: mean["gradient"] for d, mean in means.result().items()}, means.examples, means.examples, rule
    )
    assert values.mean().item() == 2.0
    squares = values.with_values({domain: value.square().sum() for domain, value in values.items()})
    assert squares.mean().item() == 4.0, "the size that PenaltyScale keeps for ever"
