"""``estimate="corrected"``: the distance to a constant without the variance of a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import toy_config

from fedhess.alignment import PenaltyScale, Step, run_forward
from fedhess.alignment.loading import load_strategy
from fedhess.base.errors import UsageError
from fedhess.curvature import distances, head_gradient, head_hvp, hessian_gradient_product
from fedhess.models.headed import HeadedModel
from fedhess.strategies.cma import CMA
from fedhess.strategies.hgp import HGP
from fedhess.strategies.hutchinson import Hutchinson

ONE = torch.ones((), dtype=torch.float64)
NAMES = ("gradient", "hgp", "diagonal", "sketch")
REFERENCE: dict[str, Tensor] = {name: torch.zeros(3, 5, dtype=torch.float64) for name in NAMES}
REFERENCE |= {f"{name}_size": torch.ones(()) for name in NAMES} | {
    "seed": torch.zeros((), dtype=torch.int64),
    "domain_examples": torch.tensor(12),
    "example_weight": ONE / 36,
}


@pytest.fixture
def drawn() -> tuple[HeadedModel, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = HeadedModel(nn.Identity(), nn.Linear(4, 3).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.arange(12) % 3


def step_of(model: HeadedModel, inputs: Tensor, labels: Tensor, *, in_answers: float = 0.0) -> Step:
    return Step(model, run_forward(model, inputs, labels), {}, index=0, server_round=1, in_answers=in_answers)


def share_of(step: Step, *, examples: int = 12, weight: float = 0.0) -> Tensor | None:
    reference = {"domain_examples": torch.tensor(examples), "example_weight": ONE * weight}
    return PenaltyScale("relative", {}).share(step, reference)


@pytest.mark.parametrize(("size", "examples"), [(4, 12), (5, 12), (4, 10**9)])
def test_the_mean_over_batches_is_the_distance_of_the_whole_domain(
    drawn: tuple[HeadedModel, Tensor, Tensor], size: int, examples: int
) -> None:
    model, inputs, labels = drawn
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(500, 12, generator=generator).argsort(1)
    batches = order[:, :size] if examples == 12 else torch.randint(12, (500, size), generator=generator)
    found: dict[str, Tensor] = {}
    for estimate in ("batch", "corrected"):
        steps = [step_of(model, inputs[batch], labels[batch]) for batch in batches]
        shares = [share_of(step, examples=examples) if estimate == "corrected" else None for step in steps]
        distances = (
            step.squared_distance(head_gradient, REFERENCE["gradient"], share=share)
            for step, share in zip(steps, shares, strict=True)
        )
        found[estimate] = torch.stack([distance.detach() for distance in distances])
    whole = step_of(model, inputs, labels).distances(gradient=REFERENCE["gradient"]).gradient_distance.item()
    error = {name: float(values.std()) / len(values) ** 0.5 for name, values in found.items()}
    assert abs(float(found["corrected"].mean()) - whole) < 4 * error["corrected"]
    assert float(found["batch"].mean()) - whole > 5 * error["batch"], "by the variance of a batch"


@pytest.mark.parametrize("strategy", [HGP, Hutchinson, CMA])
def test_relative_penalties_are_corrected_except_where_a_batch_is_the_domain(
    strategy: Any, drawn: tuple[HeadedModel, Tensor, Tensor]
) -> None:
    model, inputs, labels = drawn

    def penalties(step: Step) -> list[Tensor]:
        return [strategy(**args).penalty(step, REFERENCE) for args in ({}, {"estimate": "batch"})]

    corrected, plain = penalties(step_of(model, inputs[:6], labels[:6]))
    assert corrected < plain
    corrected, plain = penalties(step_of(model, inputs, labels))
    assert corrected.item() == plain.item() > 0
    corrected, plain = penalties(single := step_of(model, inputs[:1], labels[:1], in_answers=3.0))
    share = PenaltyScale("relative", {}).share(single, REFERENCE)
    assert share is not None
    torch.testing.assert_close(corrected, share * plain, msg="one example has no halves")


@pytest.mark.parametrize("strategy", [HGP, Hutchinson, CMA])
def test_batches_of_one_example_are_refused_where_nothing_of_the_penalty_would_be_left(strategy: Any) -> None:
    with pytest.raises(UsageError, match="off throughout: expected batches of 2 examples or more, got --bat"):
        strategy().check(toy_config(batch_size=1))
    strategy(estimate="batch").check(toy_config(batch_size=1))
    for size in (0, 2):
        strategy().check(toy_config(batch_size=size))


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("size", [12, 5])
def test_a_batch_is_estimated_by_its_halves_up_to_its_share_of_domain_and_references(
    drawn: tuple[HeadedModel, Tensor, Tensor], size: int, gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, labels = drawn
    monkeypatch.setattr(distances, "gram_is_cheaper", lambda batch, *, hgp: gram)
    inputs, labels = inputs[:size], labels[:size]
    even, odd = (hessian_gradient_product(step_of(model, inputs[start::2], labels[start::2]).batch) for start in (0, 1))
    for more, expected_share in ((0, 0.25), (3, 0.4)):
        step = step_of(model, inputs, labels, in_answers=size + more)
        share = share_of(step, examples=4 * size, weight=0.05)
        torch.testing.assert_close(share, ONE * expected_share)
        product, square = (even * odd).sum(), hessian_gradient_product(step.batch).square().sum()
        expected = (1 - expected_share) * product + expected_share * square
        found = step.squared_distance(hessian_gradient_product, REFERENCE["hgp"], share=share)
        fused = step.distances(hgp=REFERENCE["hgp"], share=share).hgp_distance
        torch.testing.assert_close([found, fused], [expected, expected])


# By what a step's batch is: the clients that share the domain, B, and how many of its examples the batch stands for.
BATCHES = {
    "in the reference": (1, 4, 12),
    "in the reference, of a part of the domain": (2, 3, 6),
    "all that a client holds": (3, 4, 4),
    "later in the pass": (2, 3, 0),
    "in another pass": (2, 3, 3),
}


@pytest.mark.parametrize("which", BATCHES)
def test_the_slope_has_no_bias_whatever_the_batch_has_in_common_with_the_reference(
    drawn: tuple[HeadedModel, Tensor, Tensor], which: str
) -> None:
    # Both domains are the same examples, so that all of a slope along the head's parameters is of the variance.
    model, inputs, labels = drawn
    clients, size, in_answers = BATCHES[which]
    generator = torch.Generator().manual_seed(1)
    held, of_other = (torch.rand(20_000, 12, generator=generator).argsort(1).unflatten(1, (clients, -1)) for _ in "ab")
    own = held[:, 0]
    again = torch.rand(own.shape, generator=generator).argsort(1)
    batch = {"later in the pass": own[:, size:], "in another pass": own.gather(1, again)}.get(which, own)[:, :size]
    share = share_of(step_of(model, inputs[:size], labels[:size], in_answers=in_answers), weight=1 / 24)
    assert share is not None

    singles = [step_of(model, inputs[one : one + 1], labels[one : one + 1]).batch for one in range(12)]
    along = torch.cat([model.head.weight, model.head.bias.unsqueeze(1)], 1)
    with torch.no_grad():
        gradients = torch.stack([head_gradient(single) for single in singles])
        changes = torch.stack([head_hvp(single, along) for single in singles])
    asked = torch.cat([domain[:, :, :size].flatten(1) for domain in (held, of_other)], 1)
    reference = gradients[asked].mean(1)

    def slope(of: Tensor, towards: Tensor) -> Tensor:
        return (changes[of].mean(1) * (gradients[towards].mean(1) - reference)).sum((1, 2))

    even, odd = batch[:, ::2], batch[:, 1::2]
    plain, product = 2 * slope(batch, batch), slope(even, odd) + slope(odd, even)
    found = {change: torch.lerp(product, plain, share + change) for change in (-0.1, 0.0, 0.1)}
    less, exact, more = (float(each.mean() / each.std()) * len(each) ** 0.5 for each in found.values())
    assert abs(exact) < 4
    assert min(less, -more) > 4 or max(less, -more) < -4


@pytest.mark.parametrize("strategy", ["hgp", "hutchinson", "cma"])
def test_a_corrected_distance_is_refused_where_nothing_limits_it(strategy: str) -> None:
    with pytest.raises(UsageError, match='expected scale="relative" with estimate="corrected"'):
        load_strategy(strategy, {"estimate": "corrected", "scale": "absolute"})
