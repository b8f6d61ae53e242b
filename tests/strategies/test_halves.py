"""``estimate="halves"``: the distance to a constant without the variance of a batch, and where it is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import toy_config

from fedhess.alignment import DomainStrategy, Step, run_forward
from fedhess.alignment.loading import load_strategy
from fedhess.base.errors import UsageError
from fedhess.curvature import head_gradient
from fedhess.models.headed import HeadedModel
from fedhess.strategies.hgp import HGP
from fedhess.strategies.hutchinson import Hutchinson

REFERENCE = torch.zeros(3, 5, dtype=torch.float64)


@pytest.fixture
def drawn() -> tuple[HeadedModel, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = HeadedModel(nn.Identity(), nn.Linear(4, 3).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.arange(12) % 3


def step_of(model: HeadedModel, inputs: Tensor, labels: Tensor) -> Step:
    return Step(model, run_forward(model, inputs, labels), {}, index=0, server_round=1)


def test_the_mean_over_batches_is_the_distance_of_the_whole_domain(drawn: tuple[HeadedModel, Tensor, Tensor]) -> None:
    model, inputs, labels = drawn
    generator = torch.Generator().manual_seed(1)
    batches = torch.randint(12, (2000, 4), generator=generator)
    of_batches, of_halves = (
        torch.stack([of(step_of(model, inputs[batch], labels[batch])).detach() for batch in batches])
        for of in (
            lambda step: step.distances(gradient=REFERENCE).gradient_distance,
            lambda step: step.halved_distance(head_gradient, REFERENCE),
        )
    )
    whole = step_of(model, inputs, labels).distances(gradient=REFERENCE).gradient_distance.item()
    error = [float(values.std()) / len(values) ** 0.5 for values in (of_batches, of_halves)]
    assert abs(float(of_halves.mean()) - whole) < 4 * error[1]
    assert float(of_batches.mean()) - whole > 20 * error[0], "by the variance of a batch"


@pytest.mark.parametrize("strategy", [HGP, Hutchinson])
def test_a_batch_of_one_example_has_its_squared_distance(
    strategy: Any, drawn: tuple[HeadedModel, Tensor, Tensor]
) -> None:
    model, inputs, labels = drawn
    step = step_of(model, inputs[:1], labels[:1])
    names = ("gradient", "hgp", "diagonal")
    reference = dict.fromkeys(names, REFERENCE) | {f"{name}_size": torch.ones(()) for name in names}
    plain, halved = (strategy(estimate=estimate).penalty(step, reference) for estimate in ("batch", "halves"))
    assert plain.item() > 0
    torch.testing.assert_close(halved, plain)


@pytest.mark.parametrize("strategy", ["hgp", "hutchinson"])
def test_halves_are_refused_where_nothing_limits_them_or_they_are_each_others_complement(strategy: str) -> None:
    with pytest.raises(UsageError, match='expected scale="relative" with estimate="halves"'):
        load_strategy(strategy, {"estimate": "halves", "scale": "absolute"})
    halves = load_strategy(strategy, {"estimate": "halves"})
    assert isinstance(halves, DomainStrategy)
    config = toy_config(strategy=strategy)
    halves.check(config)
    with pytest.raises(UsageError, match="estimate=halves compares two random halves of a batch, and --batch-size 0"):
        halves.check(config.model_copy(update={"batch_size": 0}))
