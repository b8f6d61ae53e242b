"""The exported network of a user's own class: what the run recorded is what it predicts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fedhess
from fedhess.domains import BENCHMARKS
from fedhess.federation.client import memory
from fedhess.jobs.reopening import open_runs
from fedhess.models.prepared import local_domain


class Waves(nn.Module):
    """A network of random features, which are no weights and so in no file."""

    frequencies: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(*input_shape, 16), persistent=False)
        self.head = nn.Linear(16, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cos(inputs @ self.frequencies))
        return logits


def test_random_numbers_that_are_no_weights_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    memory.MEMORY.clear()
    settings = {"domains": "Toy", "model": f"{__name__}:Waves", "strategy": "erm", "trials": 1, "local_steps": 1}
    results = fedhess.run(**settings, rounds=2, evaluate_every=1, lr=0.1, seed=5, target="east", out=tmp_path / "job")
    network = fedhess.load(results.export(tmp_path / "exported"))
    (run,) = open_runs(tmp_path / "job").runs
    data = local_domain(run.config, domain="east", role="target").data
    with torch.inference_mode():
        hits = network(data.inputs(torch.arange(len(data)))).argmax(1) == data.labels
    (recorded,) = [each["accuracy"] for each in network.config["scores"] if each["role"] == "target"]
    assert int(hits.sum()) / len(hits) == recorded
