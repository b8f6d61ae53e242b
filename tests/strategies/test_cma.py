"""How far a sketch of the Hessian is from the Hessian, and how large a full one may be."""

import math

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.curvature import HeadBatch
from fedhess.strategies.cma import CMA, full, sketch


def a_batch(seed: int, *, examples: int = 16, features: int = 5, classes: int = 4) -> HeadBatch:
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(classes, features, generator=torch.Generator().manual_seed(0)).double()
    inputs = torch.randn(examples, features, generator=generator).double()
    return HeadBatch(inputs, torch.arange(examples) % classes, head, torch.zeros(classes).double())


def test_a_sketchs_distance_errs_by_no_more_than_stated() -> None:
    one, other, probes, draws = a_batch(1), a_batch(2), 32, 200
    exact = (full(one) - full(other)).square().sum()
    sketched = torch.stack(
        [
            (sketch(one, seed=seed, probes=probes) - sketch(other, seed=seed, probes=probes)).square().sum()
            for seed in range(draws)
        ]
    )
    bound = math.sqrt(2 / probes)
    assert float(sketched.mean() / exact) == pytest.approx(1, abs=4 * bound / math.sqrt(draws))
    assert 0.1 * bound < float(sketched.std() / exact) <= bound


def test_the_released_schedule_switches_it_on_after_its_steps() -> None:
    schedule = CMA(scale="absolute", anneal_steps=900).schedule
    assert [schedule.at(step) for step in (0, 899, 900)] == [0, 0, 1]
    assert CMA().schedule.at(0) == 1


def test_a_hessian_too_large_to_send_is_refused() -> None:
    with pytest.raises(UsageError, match=r"head of 65 x 2049 .* has 70953 MB, more than 268; give form=blocks or"):
        full(HeadBatch(torch.zeros(1, 2048), torch.zeros(1).long(), torch.zeros(65, 2048), torch.zeros(65)))
