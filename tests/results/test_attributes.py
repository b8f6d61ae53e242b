"""Attributes of domains against slow, obvious versions, and their symmetries."""

import math

import oracles
import pytest
import torch
from oracles import Head

from fedhess.curvature import HeadBatch
from fedhess.results.attributes import ATTRIBUTES, compare_domains, measure_domain

CLASSES, FEATURES = 3, 5
DISTANCES = [name for name, attribute in ATTRIBUTES.items() if attribute.kind == "distance"]


def make_head(seed: int, *, labels: list[int] | None = None, examples: int = 12) -> Head:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(CLASSES, FEATURES + 1, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    features = torch.randn(examples, FEATURES, generator=generator, dtype=torch.float64) + 0.5 * seed
    drawn = torch.randint(CLASSES, (examples,), generator=generator)
    return Head(features, drawn if labels is None else torch.tensor(labels), theta, has_bias=True)


def plain(head: Head) -> HeadBatch:
    batch = head.batch
    return HeadBatch(batch.features.detach(), batch.labels, batch.weight.detach(), batch.bias.detach())


def obvious(a: Head, b: Head) -> dict[str, float]:
    """Every attribute from autograd, dense Hessians and loops."""
    gradient = [oracles.gradient(head).detach() for head in (a, b)]
    hessian = [oracles.dense_hessian(head).detach() for head in (a, b)]
    per_example = [
        torch.stack(
            [
                oracles.gradient(Head(head.features[i : i + 1], head.labels[i : i + 1], head.theta, has_bias=True))
                for i in range(len(head.labels))
            ]
        ).detach()
        for head in (a, b)
    ]
    variance = [rows.var(0, correction=0) for rows in per_example]
    features = [head.features.detach() for head in (a, b)]
    covariance = [torch.cov(rows.T, correction=0) for rows in features]
    shared = sorted(set(a.labels.tolist()) & set(b.labels.tolist()))
    apart = [features[0][a.labels == c].mean(0) - features[1][b.labels == c].mean(0) for c in shared]
    inner = float((gradient[0] * gradient[1]).sum())
    norms = [float(torch.linalg.norm(g)) for g in gradient]
    return {
        "loss": abs(a.loss(a.theta).item() - b.loss(b.theta).item()),
        "gradient_norm": abs(norms[0] - norms[1]),
        "gradient": float(torch.linalg.norm(gradient[0] - gradient[1])),
        "gradient_inner_product": inner,
        "gradient_cosine": inner / norms[0] / norms[1],
        "gradient_variance": float(torch.linalg.norm(variance[0] - variance[1])),
        "feature_mean": float(torch.linalg.norm(features[0].mean(0) - features[1].mean(0))),
        "feature_covariance": float(torch.linalg.norm(covariance[0] - covariance[1])),
        "class_feature_means": math.sqrt(sum(float(vector @ vector) for vector in apart) / len(shared)),
        "hgp": float(torch.linalg.norm(hessian[0] @ gradient[0].flatten() - hessian[1] @ gradient[1].flatten())),
        "hessian_diagonal": float(torch.linalg.norm(hessian[0].diagonal() - hessian[1].diagonal())),
        "hessian_spectral": float(torch.linalg.matrix_norm(hessian[0] - hessian[1], ord=2)),
    }


@pytest.mark.parametrize("examples", [12, 3])
def test_every_attribute_equals_its_obvious_version(examples: int) -> None:
    a, b = make_head(0, examples=examples), make_head(1, examples=examples, labels=[0, 1, 2] * (examples // 3))
    found = compare_domains(measure_domain(plain(a)), measure_domain(plain(b)))
    expected = obvious(a, b)
    assert list(found) == list(expected) == list(ATTRIBUTES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_comparison_is_symmetric() -> None:
    a, b = (measure_domain(plain(make_head(seed))) for seed in (0, 1))
    assert compare_domains(a, b) == pytest.approx(compare_domains(b, a), rel=1e-12)


def test_equal_domains_have_no_distance_and_cosine_one() -> None:
    a, b = (measure_domain(plain(make_head(3))) for _ in range(2))
    found = compare_domains(a, b)
    assert all(found[name] == 0 for name in DISTANCES)
    assert found["gradient_cosine"] == pytest.approx(1)
    assert found["gradient_inner_product"] == pytest.approx(float(a.gradient.square().sum()))


@pytest.mark.parametrize(("length", "cosine"), [(1.0, -1.0), (1e-12, -1.0), (0.0, math.nan)])
def test_cosine_is_that_of_opposite_gradients_of_any_length(length: float, cosine: float) -> None:
    """With a head of zeros and two classes, other labels turn the gradient round, and features scale it."""
    features, zero = torch.full((1, FEATURES), length, dtype=torch.float64), torch.zeros(2, FEATURES).double()
    a, b = (measure_domain(HeadBatch(features, torch.tensor([label]), zero)) for label in (0, 1))
    assert compare_domains(a, b)["gradient_cosine"] == pytest.approx(cosine, nan_ok=True)


def test_one_shifted_attribute_moves_and_independent_ones_stay() -> None:
    """With a head of zeros and shifted features the loss stays, mean and gradient move, the covariance stays."""
    zero = torch.zeros(CLASSES, FEATURES, dtype=torch.float64)
    features, labels = torch.randn(9, FEATURES, dtype=torch.float64), torch.arange(9) % CLASSES
    a, b = (measure_domain(HeadBatch(features + shift, labels, zero)) for shift in (0.0, 2.0))
    found = compare_domains(a, b)
    assert found["loss"] == 0
    assert found["feature_covariance"] == pytest.approx(0, abs=1e-12)
    assert found["feature_mean"] == pytest.approx(2 * math.sqrt(FEATURES))
    assert found["class_feature_means"] == pytest.approx(2 * math.sqrt(FEATURES))
    assert found["hessian_spectral"] > 1


def test_classes_of_one_domain_only_are_left_out() -> None:
    a, b = make_head(0, labels=[0] * 6 + [1] * 6), make_head(1, labels=[1] * 6 + [2] * 6)
    found = compare_domains(measure_domain(plain(a)), measure_domain(plain(b)))
    apart = a.features[6:].mean(0) - b.features[:6].mean(0)
    assert found["class_feature_means"] == pytest.approx(apart.norm().item())


def test_without_a_shared_class_their_means_are_not_defined() -> None:
    a, b = make_head(0, labels=[0] * 12), make_head(1, labels=[1] * 12)
    assert math.isnan(compare_domains(measure_domain(plain(a)), measure_domain(plain(b)))["class_feature_means"])


def test_logistic_head_is_compared_too() -> None:
    features, labels = torch.randn(8, FEATURES, dtype=torch.float64), torch.arange(8) % 2
    weight, bias = torch.randn(1, FEATURES, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    a, b = (measure_domain(HeadBatch(factor * features, labels, weight, bias)) for factor in (1.0, 2.0))
    found = compare_domains(a, b)
    assert all(math.isfinite(value) for value in found.values())
    assert found["hessian_spectral"] > 0
