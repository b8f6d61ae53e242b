"""Automatic differentiation against the closed forms for a linear head, and finite differences for any other."""

import copy

import pytest
import torch
from head_cases import make_head
from torch import Tensor, nn

from fedhess.curvature import HeadBatch, autodiff, closed_form, distances
from fedhess.curvature.autodiff import EQUIVALENT, ModuleBatch


def linear_pair(outputs: int, has_bias: bool, examples: int = 6) -> tuple[HeadBatch, ModuleBatch]:
    case = make_head(examples, 4, outputs, has_bias)
    layer = nn.Linear(4, outputs, bias=has_bias).double()
    return (
        HeadBatch(case.features, case.labels, layer.weight, layer.bias),
        ModuleBatch(case.features, case.labels, layer),
    )


def flat(batch: HeadBatch, value: Tensor) -> Tensor:
    """(C, K) in the order of the parameters of nn.Linear: the weight, then the bias."""
    if value.ndim == 0 or batch.bias is None:
        return value.reshape(-1) if value.ndim else value
    return torch.cat([value[:, :-1].reshape(-1), value[:, -1]])


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_equivalent_agrees_with_the_closed_form_and_its_derivatives(outputs, has_bias):
    closed, module = linear_pair(outputs, has_bias)
    vector = torch.randn(closed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    extra = {
        closed_form.head_hvp: {"vector": vector},
        distances.alignment_distances: {"gradient": vector, "hgp": 2 * vector},
        distances.head_objective: {"gradient": vector, "hgp": 2 * vector},
        distances.gradient_distance: {"reference": vector},
        distances.hgp_distance: {"reference": vector},
        distances.diagonal_distance: {"reference": vector},
    }
    other_closed, other_module = linear_pair(outputs, has_bias, examples=5)
    for function, counterpart in EQUIVALENT.items():
        if function is closed_form.hutchinson_diagonal:
            continue  # its probes have another order; tested below
        given = extra.get(function, {})
        flat_given = {name: flat(closed, value) for name, value in given.items()}
        pair = function is closed_form.spectral_distance
        ours = function(closed, *([other_closed] if pair else []), **given)
        theirs = counterpart(module, *([other_module] if pair else []), **flat_given)
        for one, other in zip(as_tuple(ours), as_tuple(theirs), strict=True):
            torch.testing.assert_close(flat(closed, one), other, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(
                torch.autograd.grad(one.square().sum(), closed.features, retain_graph=True),
                torch.autograd.grad(other.square().sum(), module.features, retain_graph=True),
                rtol=1e-7 if pair else 1e-10,
                atol=1e-10,
            )


def as_tuple(value) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def test_every_public_statistic_and_distance_has_an_equivalent():
    statistics = {getattr(closed_form, name) for name in closed_form.__all__ if name != "HeadBatch"}
    measures = {getattr(distances, name) for name in distances.__all__ if name.endswith(("distance", "distances"))}
    assert statistics | measures | {distances.head_objective} == set(EQUIVALENT)


def nonlinear_batch(outputs: int = 3) -> ModuleBatch:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.set_rng_state(torch_state)
    return ModuleBatch(features, torch.tensor([0, 1, 0, 1, 0, 1]), head)


def dense_hessian(batch: ModuleBatch) -> Tensor:
    names = [name for name, _ in batch.head.named_parameters()]
    shapes = [parameter.shape for parameter in batch.head.parameters()]
    vector = torch.nn.utils.parameters_to_vector(batch.head.parameters()).detach()

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([shape.numel() for shape in shapes])
        named = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        logits = torch.func.functional_call(batch.head, named, (batch.features,))
        if logits.shape[1] == 1:
            return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], batch.labels.double())
        return nn.functional.cross_entropy(logits, batch.labels)

    return torch.autograd.functional.hessian(loss, vector)


@pytest.mark.parametrize("outputs", [1, 3])
def test_nonlinear_statistics_match_the_dense_hessian(outputs):
    batch = nonlinear_batch(outputs)
    hessian = dense_hessian(batch)
    gradient = autodiff.head_gradient(batch)
    vector = torch.arange(len(gradient), dtype=torch.float64)
    torch.testing.assert_close(autodiff.head_hvp(batch, vector), hessian @ vector)
    torch.testing.assert_close(autodiff.hessian_gradient_product(batch), hessian @ gradient.detach())
    torch.testing.assert_close(autodiff.hessian_diagonal(batch), hessian.diagonal())


def test_diagonal_and_variance_in_chunks_equal_one_chunk(monkeypatch):
    batch = nonlinear_batch()
    whole = autodiff.hessian_diagonal(batch), autodiff.gradient_variance(batch)
    monkeypatch.setattr(autodiff, "ROWS", 4)
    for one, other in zip(whole, (autodiff.hessian_diagonal(batch), autodiff.gradient_variance(batch)), strict=True):
        torch.testing.assert_close(one, other)


def test_nonlinear_penalty_has_the_derivative_of_finite_differences():
    batch = nonlinear_batch()
    reference = torch.ones_like(autodiff.head_gradient(batch)).detach()

    def penalty(features: Tensor) -> tuple[Tensor, ...]:
        moved = ModuleBatch(features, batch.labels, batch.head)
        distances = autodiff.alignment_distances(moved, gradient=reference, hgp=reference)
        return *distances, autodiff.diagonal_distance(moved, reference)

    assert torch.autograd.gradcheck(penalty, batch.features)
    sum(penalty(batch.features)).backward()
    assert all(parameter.grad is not None for parameter in batch.head.parameters())


def test_hutchinson_converges_to_the_exact_diagonal():
    batch = nonlinear_batch()
    exact = autodiff.hessian_diagonal(batch).detach()
    with torch.no_grad():
        errors = [
            (autodiff.hutchinson_diagonal(batch, probes=n, generator=torch.Generator().manual_seed(0)) - exact).norm()
            for n in (16, 4096)
        ]
    assert errors[1] < errors[0] / 8
    assert errors[1] < 0.05 * exact.norm()


def test_spectral_distance_matches_dense_eigenvalues():
    batch, other = nonlinear_batch(), nonlinear_batch()
    other.features.data += 1
    expected = torch.linalg.eigvalsh(dense_hessian(batch) - dense_hessian(other)).abs().max()
    torch.testing.assert_close(autodiff.spectral_distance(batch, other), expected)


def test_results_have_a_graph_only_when_the_caller_records_one():
    batch = nonlinear_batch()
    reference = autodiff.head_gradient(batch).detach()
    with torch.no_grad():
        assert not autodiff.head_gradient(batch).requires_grad
        assert not autodiff.head_objective(batch, gradient=reference).gradient_distance.requires_grad
    assert autodiff.head_gradient(batch).requires_grad


def test_objective_without_references_is_the_plain_loss():
    batch = nonlinear_batch()
    terms = autodiff.head_objective(batch)
    expected = nn.functional.cross_entropy(batch.head(batch.features), batch.labels)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-15, atol=0)
    assert terms.hgp_distance == 0


def test_statistics_leave_batch_norm_and_frozen_parameters_as_they_were():
    head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double().train()
    head[1].weight.requires_grad_(requires_grad=False)
    before = copy.deepcopy(head.state_dict())
    batch = ModuleBatch(torch.randn(5, 3).double(), torch.zeros(5).long(), head)
    assert autodiff.head_gradient(batch).shape == (14,)
    assert autodiff.gradient_variance(batch).shape == (14,)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert not head[1].weight.requires_grad


def test_unused_parameters_count_as_zero():
    head = nn.Linear(3, 2).double()
    head.spare = nn.Parameter(torch.ones(2).double())
    batch = ModuleBatch(torch.randn(5, 3).double(), torch.zeros(5).long(), head)
    order = [name for name, _ in head.named_parameters()]
    assert order[-1] == "spare"
    assert autodiff.hessian_gradient_product(batch)[-2:].tolist() == [0, 0]


def test_bad_arguments_are_named():
    features, labels = torch.zeros(4, 3), torch.zeros(4).long()
    with pytest.raises(ValueError, match="head: expected a module with parameters, got none"):
        ModuleBatch(features, labels, nn.ReLU())
    with pytest.raises(ValueError, match=r"labels: expected int64 of shape \(4,\), got torch.float32"):
        ModuleBatch(features, labels.float(), nn.Linear(3, 2))
    batch = ModuleBatch(features, labels, nn.Linear(3, 2))
    wrong = torch.zeros(7)
    for name, call in {
        "vector": lambda: autodiff.head_hvp(batch, wrong),
        "gradient reference": lambda: autodiff.gradient_distance(batch, wrong),
        "hgp reference": lambda: autodiff.hgp_distance(batch, wrong),
        "diagonal reference": lambda: autodiff.diagonal_distance(batch, wrong),
        "batch_b's parameters": lambda: autodiff.spectral_distance(
            batch, ModuleBatch(features, labels, nn.Linear(3, 4))
        ),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: expected a flat vector of shape \(8,\).* got \(\d+,\)"):
            call()
    with pytest.raises(ValueError, match="probes: expected at least 1, got 0"):
        autodiff.hutchinson_diagonal(batch, probes=0, generator=torch.Generator())
