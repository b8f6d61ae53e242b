"""Distances to references: against autograd, both forms against each other, and what rounding may do."""

import copy
from collections.abc import Iterator

import oracles
import pytest
import torch
from head_cases import heads, like_theta, make_head
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedhess.curvature import HeadBatch, closed_form, head_objective


def assert_equal(ours: Tensor, oracle: Tensor) -> None:
    size = max(1.0, oracle.detach().abs().max().item())
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12 * size)


def oracle_terms(
    head: oracles.Head, share: Tensor | None, gradient: Tensor, hgp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    distances = []
    for statistic, reference in ((oracles.gradient, gradient), (oracles.hgp, hgp)):
        distance = (statistic(head) - reference).square().sum()
        if share is not None:
            distance = share * distance
            if len(head.labels) > 1:
                even, odd = (statistic(half) - reference for half in halves(head))
                distance = distance + (1 - share) * (even * odd).sum()
        distances.append(distance)
    return head.loss(head.theta), distances[0], distances[1]


def halves(head: oracles.Head) -> Iterator[oracles.Head]:
    for start in (0, 1):
        half = copy.copy(head)  # its features and theta stay in the graph of the head's
        half.features, half.labels = head.features[start::2], head.labels[start::2]
        yield half


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("names", [("gradient",), ("hgp",), ("gradient", "hgp")])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(head=heads())
def test_objective_and_its_derivatives_match_double_backward(gram, share, names, head):
    share = share if share is None else torch.tensor(share, dtype=torch.float64)
    references = {"gradient": like_theta(head, seed=1), "hgp": like_theta(head, seed=2)}
    ours = head_objective(head.batch, **{name: references[name] for name in names}, share=share, gram=gram)
    oracle = oracle_terms(head, share, **references)
    inputs = [head.features, head.theta]
    for name, mine, theirs in zip(("loss", "gradient", "hgp"), ours, oracle, strict=True):
        if name not in ("loss", *names):
            assert mine == 0
            continue
        assert_equal(mine, theirs)
        slopes = [torch.autograd.grad(value, inputs, retain_graph=True) for value in (mine, theirs)]
        for got, expected in zip(*slopes, strict=True):
            assert_equal(got, expected)


def test_objective_without_references_is_bit_for_bit_the_plain_loss():
    for outputs in (1, 5):
        head = make_head(6, 4, outputs)
        terms = head_objective(head.batch)
        assert (terms.gradient_distance, terms.hgp_distance) == (0, 0)
        assert torch.equal(terms.loss, head.loss(head.theta))
        for mine, plain in zip(
            torch.autograd.grad(terms.loss, [head.features, head.theta]),
            torch.autograd.grad(head.loss(head.theta), [head.features, head.theta]),
            strict=True,
        ):
            assert torch.equal(mine, plain)


def own_references(batch: HeadBatch) -> dict[str, Tensor]:
    with torch.no_grad():
        return {
            "gradient": closed_form.head_gradient(batch).clone(),
            "hgp": closed_form.hessian_gradient_product(batch).clone(),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(32, 256, 7), (32, 256, 345), (8, 2048, 65), (64, 64, 1000), (64, 20, 1)])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_identical_domains_have_distance_zero_and_no_pull(dtype, shape, scale):
    head = make_head(*shape, scale=scale)
    features, theta = (part.detach().to(dtype).requires_grad_() for part in (head.features, head.theta))
    batch = HeadBatch(features, head.labels, theta[:, :-1], theta[:, -1])
    own = own_references(batch)
    far = {name: 2 * reference for name, reference in own.items()}
    for gram in (True, False):
        near = head_objective(batch, **own, gram=gram)
        away = head_objective(batch, **far, gram=gram)
        for index in (1, 2):
            if gram:
                assert near[index].item() == 0
            assert 0 <= near[index].item() <= (10 * torch.finfo(dtype).eps) ** 2 * away[index].item()
            for mine, yardstick in zip(
                torch.autograd.grad(near[index], [features, theta], retain_graph=True),
                torch.autograd.grad(away[index], [features, theta], retain_graph=True),
                strict=True,
            ):
                assert mine.norm() <= 200 * torch.finfo(dtype).eps * yardstick.norm()


def test_gram_form_follows_the_gradient_of_a_distance_below_its_floor():
    head = make_head(16, 64, 100)
    single = [part.detach().float().requires_grad_() for part in (head.features, head.theta)]
    rounded = oracles.Head(single[0].double(), head.labels, single[1].double(), has_bias=True)
    away = like_theta(head)
    reference = oracles.gradient(rounded).detach()
    reference = (reference + 5e-4 * reference.norm() / away.norm() * away).float()
    batch = HeadBatch(single[0], head.labels, single[1][:, :-1], single[1][:, -1])
    distance = head_objective(batch, gradient=reference, gram=True).gradient_distance
    exact = (oracles.gradient(rounded) - reference.double()).square().sum()
    assert distance == 0
    assert exact > 0
    direct = head_objective(batch, gradient=reference, gram=False).gradient_distance
    torch.testing.assert_close(direct.double(), exact, rtol=1e-3, atol=0)
    (right,) = torch.autograd.grad(exact, rounded.theta)
    errors = [(torch.autograd.grad(value, single[1])[0] - right).norm() / right.norm() for value in (distance, direct)]
    assert errors[0] < 0.1
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("gram", [True, False])
def test_float32_distances_are_accurate_away_from_zero(gram):
    head = make_head(32, 512, 50, scale=0.2)
    gradient, hgp = (2 * part.detach() for part in (oracles.gradient(head), oracles.hgp(head)))
    features, theta = (part.detach().float() for part in (head.features, head.theta))
    batch = HeadBatch(features, head.labels, theta[:, :-1], theta[:, -1])
    ours = head_objective(batch, gradient=gradient.float(), hgp=hgp.float(), gram=gram)
    for mine, exact in zip(ours, oracle_terms(head, None, gradient, hgp), strict=True):
        torch.testing.assert_close(mine.double(), exact.detach(), rtol=2e-5, atol=0)


def test_squared_norms_of_a_million_float32_entries_keep_their_digits():
    reference = like_theta(make_head(1, 2048, 400)).float()
    batch = HeadBatch(torch.zeros(1, 2048), torch.tensor([0]), torch.zeros(400, 2048), torch.zeros(400))
    exact = (closed_form.head_gradient(batch).double() - reference.double()).square().sum()
    for gram in (True, False):
        ours = head_objective(batch, gradient=reference, gram=gram).gradient_distance.double()
        torch.testing.assert_close(ours, exact, rtol=8 * torch.finfo(torch.float32).eps, atol=0)


class NewTensors(TorchDispatchMode):
    """Records the shapes of what operations return, but for views of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.shapes.append(tuple(out.shape))
        return out


def test_gram_form_builds_no_matrix_of_the_parameters_shape():
    head = make_head(3, 40, 50)
    references = {"gradient": like_theta(head, 1), "hgp": like_theta(head, 2)}
    batch = head.batch
    with NewTensors() as seen:
        terms = head_objective(batch, **references)
        torch.autograd.grad(sum(terms), head.features)
    assert (50, 41) not in seen.shapes
    with NewTensors() as seen:
        head_objective(batch, **references, gram=False)
    assert (50, 41) in seen.shapes


def test_reference_is_held_fixed():
    head = make_head(4, 3, 2)
    reference = like_theta(head).requires_grad_()
    total = sum(head_objective(head.batch, gradient=reference, hgp=reference))
    total.backward()
    assert reference.grad is None
    assert head.theta.grad is not None


@pytest.mark.parametrize("name", ["gradient", "hgp"])
def test_reference_of_the_wrong_shape_is_named(name):
    wrong = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"{name} reference: expected .*\(2, 4\).*got .*\(2, 3\).*last column"):
        head_objective(make_head(4, 3, 2).batch, **{name: wrong})
