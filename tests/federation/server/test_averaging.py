"""What averages over rounds are of, to the bit; when SWAD's valley begins and ends; what is evaluated and kept."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from misbehaving import Misbehaving, crash
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.federation.server.averaging import Swad
from fedhess.federation.server.run_directory import RunDirectory

Run = Callable[..., Any]
HELD_OUT = {"domains_options": {"holdout": 0.25}}
SWAD = {"n_converge": 3, "n_tolerance": 6, "tolerance_ratio": 0.3}


@pytest.fixture
def recorded(toy_run: Run) -> Callable[..., tuple[list[dict[str, Tensor]], Any]]:
    """Train a run once for each of its rounds: the models after each, and the last run."""

    def record(rounds: int, **settings: Any) -> tuple[list[dict[str, Tensor]], Any]:
        runs = [toy_run(rounds=number, **settings) for number in range(1, rounds + 1)]
        return [run.tensors for run in runs], runs[-1]

    return record


def mean_of(models: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: (sum(m[name].double() for m in models) / len(models)).to(models[0][name].dtype) for name in models[0]}


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("args", "which"), [({"start": 0}, [1, 2, 3, 4, 5]), ({"start": 0.4, "every": 2}, [2, 4])])
def test_swa_is_the_mean_of_the_recorded_models_to_the_bit(
    recorded: Run, toy_run: Run, dtype: str, args: dict[str, float], which: list[int]
) -> None:
    models, plain = recorded(5, dtype=dtype, strategy="hgp", local_steps=2)
    run = toy_run(rounds=5, dtype=dtype, strategy="hgp", local_steps=2, average="swa", average_args=args)
    assert_equal(run.tensors, plain.tensors)  # training is not touched
    assert_equal(run.server.evaluated.tensors, mean_of([models[number - 1] for number in which]))
    found = {row["round"]: row["averaged"] for row in run.rows}
    assert found == {number: sum(each <= number for each in which) for number in range(6)}
