"""A kept forward pass goes backward although the model's buffers are restored between the messages."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import METHODS
from torch import Tensor, nn

from fedhess.models import MODELS
from fedhess.models.headed import FrozenNorms, HeadedModel
from tests.promises.test_alive import Amnesia, same

Run = Callable[..., Any]


class Normed(FrozenNorms):
    """A featurizer whose batch norm is frozen, as a ResNet's is: its backward needs the running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 8), nn.BatchNorm2d(8)
        self.train()

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = torch.relu(self.norm(self.linear(inputs)[:, :, None, None]).flatten(1))
        return features


def make_frozen(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    return HeadedModel(Normed(), nn.Linear(8, outputs))


@pytest.mark.parametrize("name", ["vrex", "hgp-alpha", "iga"])
def test_one_plain_step_trains_a_model_with_frozen_norms(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = types.ModuleType("frozen_model")
    module.make_frozen = make_frozen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frozen_model", module)
    monkeypatch.setitem(MODELS, "frozen", "frozen_model:make_frozen")
    method = METHODS[name]
    args = {"strategy": method.strategy, "strategy_args": method.args, "model": "frozen", "rounds": 2}
    kept = toy_run(**args)
    assert not [failure for row in kept.rows for failure in row["failures"]]
    assert same(kept.tensors, toy_run(app=Amnesia(), **args).tensors)
