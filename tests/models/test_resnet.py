from pathlib import Path

import pytest
import torch
import torchvision

from fedhess.base.errors import UsageError
from fedhess.domains import download
from fedhess.models import create_model

FILE = "resnet18-f37072fd.pth"


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def create():
    return create_model("resnet18", input_shape=(3, 64, 64), outputs=7, seed=0)


def test_weights_in_place_are_loaded(checkpoints: Path):
    torch.manual_seed(3)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), checkpoints / FILE)
    model = create()
    assert torch.equal(model.featurizer.network.layer4[0].conv1.weight, network.layer4[0].conv1.weight)
    assert model.head.weight.shape == (7, 512)


def test_without_weights_and_network_it_says_where_to_put_them(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "_request", lambda urls: f"{urls[0]} cannot be reached: no network here")
    with pytest.raises(UsageError) as caught:
        create()
    message = str(caught.value)
    assert "no network here" in message
    assert f"Put the file {FILE} (from https://download.pytorch.org/models/{FILE}) at {checkpoints / FILE}" in message
    assert "--model lite0 or lite0-features" in message


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut short"])
def test_a_damaged_weight_file_is_named(checkpoints: Path, content: bytes):
    (checkpoints / FILE).write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot be loaded .*{FILE}"):
        create()
