"""``estimate="corrected"``: the distance to a constant without the variance of a batch."""

from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhess.alignment import PenaltyScale, Step, run_forward
from fedhess.alignment.loading import load_strategy
from fedhess.base.errors import UsageError
from fedhess.curvature import distances, head_gradient, hessian_gradient_product
from fedhess.models.headed import HeadedModel
from fedhess.strategies.cma import CMA
from fedhess.strategies.hgp import HGP
from fedhess.strategies.hutchinson import Hutchinson

PART = torch.ones((), dtype=torch.float64)
NAMES = ("gradient", "hgp", "diagonal", "sketch")
REFERENCE: dict[str, Tensor] = {name: torch.zeros(3, 5, dtype=torch.float64) for name in NAMES}
REFERENCE |= {f"{name}_size": torch.ones(()) for name in NAMES} | {
    "seed": torch.zeros((), dtype=torch.int64),
    "examples": torch.tensor(12),
    "part": PART / 36,
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


def share_of(step: Step, *, examples: int = 12, part: float = 0.0) -> Tensor | None:
    return PenaltyScale("relative", {}).share(step, {"examples": torch.tensor(examples), "part": PART * part})


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
def test_relative_penalties_are_corrected_except_where_a_batch_is_one_example_or_all(
    strategy: Any, drawn: tuple[HeadedModel, Tensor, Tensor]
) -> None:
    model, inputs, labels = drawn

    def penalties(step: Step) -> list[Tensor]:
        return [strategy(**args).penalty(step, REFERENCE) for args in ({}, {"estimate": "batch"})]

    corrected, plain = penalties(step_of(model, inputs[:6], labels[:6]))
    assert corrected < plain
    for step in (step_of(model, inputs[:1], labels[:1]), step_of(model, inputs, labels)):
        corrected, plain = penalties(step)
        assert corrected.item() == plain.item() > 0


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("size", [12, 5])
def test_a_batch_is_estimated_by_its_halves_up_to_its_share_of_domain_and_references(
    drawn: tuple[HeadedModel, Tensor, Tensor], size: int, gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, labels = drawn
    monkeypatch.setattr(distances, "gram_is_cheaper", lambda batch, *, hgp: gram)
    inputs, labels = inputs[:size], labels[:size]
    even, odd = (hessian_gradient_product(step_of(model, inputs[start::2], labels[start::2]).batch) for start in (0, 1))
    for in_answers, expected_share in ((0.0, 0.25), (2.0, 0.4)):
        step = step_of(model, inputs, labels, in_answers=in_answers)
        share = share_of(step, examples=4 * size, part=0.1)
        torch.testing.assert_close(share, PART * expected_share)
        product, square = (even * odd).sum(), hessian_gradient_product(step.batch).square().sum()
        expected = (1 - expected_share) * product + expected_share * square
        found = step.squared_distance(hessian_gradient_product, REFERENCE["hgp"], share=share)
        fused = step.distances(hgp=REFERENCE["hgp"], share=share).hgp_distance
        torch.testing.assert_close([found, fused], [expected, expected])


def test_the_slope_has_no_bias_where_the_batch_is_part_of_the_reference(
    drawn: tuple[HeadedModel, Tensor, Tensor],
) -> None:
    # Both domains are the same examples, so that all of a slope along the head's weight is of the batches' variance.
    model, inputs, labels = drawn
    weight = model.head.weight
    generator = torch.Generator().manual_seed(1)
    slopes: dict[str, list[float]] = {"batch": [], "not part of it": [], "corrected": []}
    for _ in range(600):
        chosen = [torch.randperm(12, generator=generator)[:4] for _ in range(2)]
        step, other = (step_of(model, inputs[batch], labels[batch], in_answers=12) for batch in chosen)
        reference = (step.statistic(head_gradient) + other.statistic(head_gradient)).detach() / 2
        for name, own in slopes.items():
            share = share_of(step, part=0.0 if name == "not part of it" else 1 / 24)
            distance = step.squared_distance(head_gradient, reference, share=None if name == "batch" else share)
            (slope,) = torch.autograd.grad(distance, weight, retain_graph=True)
            own.append(float((slope * weight.detach()).sum()))
    sigmas = {name: mean(own) / stdev(own) * len(own) ** 0.5 for name, own in slopes.items()}
    assert abs(sigmas["corrected"]) < 4
    assert min(sigmas["batch"], -sigmas["not part of it"]) > 4 or max(sigmas["batch"], -sigmas["not part of it"]) < -4


@pytest.mark.parametrize("strategy", ["hgp", "hutchinson", "cma"])
def test_a_corrected_distance_is_refused_where_nothing_limits_it(strategy: str) -> None:
    with pytest.raises(UsageError, match='expected scale="relative" with estimate="corrected"'):
        load_strategy(strategy, {"estimate": "corrected", "scale": "absolute"})
