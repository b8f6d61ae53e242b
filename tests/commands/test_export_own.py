"""The exported network of a user's own class: what the run recorded is what it predicts."""

import json
from collections.abc import Mapping
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


def scaled() -> Mapping[str, tuple[Tensor, Tensor]]:
    """Images as ToTensor and Normalize leave them."""
    pixels = {name: torch.randint(256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0)) for name in "abc"}
    return {name: (each / 127.5 - 1, torch.arange(12) % 2) for name, each in pixels.items()}


def plain() -> Mapping[str, tuple[Tensor, Tensor]]:
    return {name: ((127.5 * (images + 1)).round().byte(), labels) for name, (images, labels) in scaled().items()}


@pytest.mark.parametrize(
    ("images", "seen", "files"), [("scaled", True, False), ("plain", True, True), ("plain", False, False)]
)
def test_files_are_inputs_of_a_network_of_bytes_alone(tmp_path: Path, images: str, seen: bool, files: bool) -> None:
    settings = {"domains": f"{__name__}:{images}", "model": "mlp", "strategy": "erm", "trials": 1, "rounds": 1}
    fedhess.run(**settings, target="a", out=tmp_path / "job")
    record = tmp_path / "job" / "config.json"
    recorded = json.loads(record.read_text())
    if not seen:  # as earlier versions and deployed runs have it
        del recorded["dataset"]["bytes"]
    record.write_text(json.dumps(recorded))
    card = (fedhess.open(tmp_path / "job").export(tmp_path / "exported") / "README.md").read_text()
    assert (fedhess.load(tmp_path / "exported").transform is not None) == files
    assert ("RGB images, resized to 8 x 8 pixels" in card) == files
    assert ("Tensors of 3 x 8 x 8, of the type that the benchmark's domains hold" in card) == (not files)
