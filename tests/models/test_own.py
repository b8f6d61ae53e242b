"""Networks that a user brings: split at their head, named where they have none; timm; weights from a file."""

import logging
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.models import HeadedModel, create_model
from fedhess.models.split import split_network
from fedhess.models.weights import load_weights

SHAPE = (3, 8, 8)
WRITTEN_IN_C = int


class Net(nn.Module):
    """Its head is registered before its body, and the last nn.Linear that it has is not its head."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        self.fc = nn.Linear(5, num_classes)
        self.body = nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.squeeze = nn.Linear(4 * 36, 5)

    def forward(self, images: Tensor) -> Any:
        return self.fc(torch.relu(self.squeeze(self.body(images))))


class Needs(Net):
    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes + width)


class HeadInside(Net):
    """What it calls its head is not the last layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.head(self.squeeze(self.body(images))))


class Softmax(Net):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).softmax(1)


class Pair(Net):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), images


class PairInTraining(Net):
    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        return (self.fc(features), features) if self.training else self.fc(features)


class DropsLogits(Net):
    def forward(self, images: Tensor) -> Any:
        return nn.functional.dropout(super().forward(images), training=self.training)


class DropsFeatures(Net):
    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        return self.fc(nn.functional.dropout(features, training=self.training))


class Temperature(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Any:
        return super().forward(images) * self.scale


class Reassigns(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * features.mean(0)
        return self.fc(features - self.mean)


class DropsLayers(Net):
    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        for _ in range(3):
            features = features if self.training and random.random() < 0.3 else features + 1
        return self.fc(features)


class CountsWhole(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.seen = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)


class Bounded(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.keeps = nn.Parameter(torch.tensor(0.98))

    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        return self.fc(features * torch.bernoulli(self.keeps) if self.training else features)


class Twice(Net):
    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.squeeze(self.body(images)))
        self.fc(features + 1)
        return self.fc(features)


class Parts(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.featurizer, self.head = nn.Flatten(), nn.Linear(192, num_classes)


class TwoNames(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = nn.Sequential(self.body, nn.ReLU())


class HeadOfTwoNames(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.last = nn.Sequential(self.fc)


class Truth(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mask", torch.ones(5, dtype=torch.bool))


class Raises(Net):
    def forward(self, images: Tensor) -> Any:
        raise KeyError("seven")


class NoWord(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()


def headless(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 8), nn.Flatten())


def own(name: str, *, outputs: int = 4) -> HeadedModel:
    return create_model(f"{__name__}:{name}", input_shape=SHAPE, outputs=outputs, seed=0, pretrained=False)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_head_is_what_computes_the_logits_and_gradients_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    whole = Net(num_classes=4)
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    model = split_network(whole, name="net", input_shape=SHAPE, outputs=4)
    assert model.head_name == "fc"
    assert model.head.in_features == 5
    again = Net(num_classes=4)
    again.load_state_dict(state)
    again.eval()  # batch norms of a split network are frozen, as in evaluation
    labels = torch.arange(6) % 4
    for network in (model.train(), again):
        nn.functional.cross_entropy(network(images()), labels).backward()
    ours = {name.removeprefix("featurizer.network."): value.grad for name, value in model.named_parameters()}
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(ours[name.replace("fc.", "head.")], parameter.grad, msg=name)
    assert torch.equal(model.state_dict()["featurizer.network.body.1.running_mean"], torch.zeros(4))


def test_bytes_are_fractions_of_255_and_the_dtype_is_the_models() -> None:
    model = own("Net").double()
    pixels = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(pixels), model(pixels.double() / 255), rtol=0, atol=0)
    assert model(pixels).dtype == torch.float64


def test_the_seed_decides_the_weights() -> None:
    state = torch.get_rng_state()
    one, same = own("Net").state_dict(), own("Net").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_a_featurizer_and_a_head_without_a_forward_are_run_one_after_the_other() -> None:
    model = own("Parts")
    torch.testing.assert_close(model(images()), model.head(images().flatten(1)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Softmax", r"none of its nn.Linear \(fc, squeeze\) computes the logits .* the last that it calls is 'fc'"),
        ("Pair", r"expected logits of shape \(B, 4\) for inputs of shape \(2, 3, 8, 8\), got tuple"),
        ("PairInTraining", "in training too, got tuple; return the logits alone"),
        ("DropsLogits", "something comes after its head 'fc', as a dropout or a trained scale"),
        ("Temperature", "something comes after its head 'fc'"),
        ("Twice", r"expected its head 'fc' to be called once, on features of shape \(B, D\), got \[\(2, 5\), \(2, 5\)"),
        ("headless", r"has no nn.Linear, which its head must be; its modules: 0 \(Conv2d\), 1 \(Flatten\)"),
        ("TwoNames", "'body.0.weight' and 'encoder.0.0.weight' are one tensor, and updates are sent by name"),
        ("HeadOfTwoNames", "'fc.weight' and 'last.0.weight' are one tensor"),
        ("Truth", "buffer 'mask' holds truth values, .* register it with persistent=False"),
        ("Raises", r"model '.*:Raises', forward: KeyError: 'seven' .*correct it there"),
        ("Needs", r"constructor: TypeError: Needs.__init__\(\) missing .* 'width' \(class .*test_own:Needs\)"),
        ("NoWord", "must take num_classes, and may take input_shape and pretrained; it takes classes"),
        ("SHAPE", r"is no model: expected a class or a function, got \(3, 8, 8\)"),
        ("WRITTEN_IN_C", "is no model: no signature found for builtin type <class 'int'>"),
        ("Nett", "has no 'Nett'; did you mean 'Net'"),
    ],
)
def test_what_is_no_network_with_a_linear_head_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        own(name)


def test_random_features_are_the_networks_own() -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        whole = DropsFeatures(num_classes=4).state_dict()
    found = own("DropsFeatures").state_dict()
    ours = {name.removeprefix("featurizer.network.").replace("head.", "fc."): value for name, value in found.items()}
    assert all(torch.equal(ours[name], value) for name, value in whole.items()), "trying it left everything as it was"


@pytest.mark.parametrize("name", ["Reassigns", "DropsLayers", "CountsWhole", "Bounded"])
def test_networks_that_are_odd_in_training_are_split(name: str) -> None:
    for _ in range(10):
        assert own(name).head_name == "fc"


def test_an_entry_point_of_an_installed_package_is_a_model_and_a_benchmark(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    (package / "brought-1.0.dist-info").mkdir(parents=True)
    (package / "brought-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (package / "brought-1.0.dist-info" / "entry_points.txt").write_text(
        "[fedhess.models]\nmynet = brought:net\n[fedhess.benchmarks]\nmydata = brought:data\n"
    )
    (package / "brought.py").write_text(
        "import numpy\nfrom torch import nn\n"
        "def net(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Linear(*input_shape, 3), nn.Linear(3, num_classes))\n"
        "def data(): return {name: (numpy.eye(12), numpy.arange(12) % 2) for name in 'abc'}\n"
    )
    from fedhess.base import loading

    monkeypatch.syspath_prepend(package)
    loading.installed.cache_clear()
    try:
        listed = command("--list").out
        assert "mynet" in listed
        assert "mydata" in listed
        done = command(
            *("--domains", "mydata", "--model", "mynet", "--strategy", "hgp", "--target", "a"),
            *("--rounds", "1", "--trials", "1", "--out", "job"),
        )
        assert done.status == 0, done.err
        assert "mydata" in done.out
        assert "model mynet" in (tmp_path / "job" / "summary.md").read_text()
    finally:
        loading.installed.cache_clear()
        sys.modules.pop("brought", None)


# -- timm --------------------------------------------------------------------------------------------------------------


def test_a_network_of_timm_gets_the_pixels_that_timm_would_give_it() -> None:
    model = create_model("timm:resnet10t", input_shape=(3, 24, 24), outputs=4, seed=0, pretrained=False).eval()
    assert model.head.in_features == 512
    seen: list[Tensor] = []
    model.featurizer.network.conv1.register_forward_pre_hook(lambda _, taken: seen.append(taken[0]))
    white = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    model(white)
    assert seen[0].shape == (1, 3, 176, 176), "the size that it was trained with"
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), rtol=1e-4, atol=1e-4)


def test_what_timm_cannot_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given: dict[str, Any] = {"input_shape": (3, 24, 24), "outputs": 4, "seed": 0}
    with pytest.raises(UsageError, match=r"HF_HUB_OFFLINE is set\); give a file of weights with --weights FILE, or"):
        create_model("timm:resnet10t", **given)
    with pytest.raises(UsageError, match="timm has no network 'resnet10tt'; near: resnet10t"):
        create_model("timm:resnet10tt", **given)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm:resnet10t needs timm: pip install 'fedhess\[timm\]'"):
        create_model("timm:resnet10t", **given)


# -- weights from a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_the_network_are_taken_and_a_head_of_other_classes_is_left_out(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = timm.create_model("resnet10t", num_classes=9).state_dict()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.items()}}, file)
    else:
        safetensors.torch.save_file(theirs, file)
    model = create_model("timm:resnet10t", input_shape=(3, 24, 24), outputs=4, seed=0, pretrained=False)
    head = model.head.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        load_weights(model, toy_config(weights=str(file)))
    mine = model.state_dict()
    assert all(torch.equal(mine[f"featurizer.network.{n}"], value) for n, value in theirs.items() if "fc." not in n)
    assert torch.equal(mine["head.weight"], head)
    assert f"{file}: its head does not fit (4, 512), and is initialised" in caplog.text


def test_the_head_is_taken_where_it_fits_and_names_of_our_own_do_too(tmp_path: Path) -> None:
    model, other = (create_model("mlp", input_shape=(5,), outputs=3, seed=seed) for seed in (0, 1))
    safetensors.torch.save_file(other.state_dict(), tmp_path / "mlp.safetensors")
    load_weights(model, toy_config(weights=str(tmp_path / "mlp.safetensors")))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    network, model = Net(num_classes=4), own("Net")
    torch.save(network.state_dict(), tmp_path / "net.pt")
    load_weights(model, toy_config(weights=str(tmp_path / "net.pt")))
    assert torch.equal(model.head.weight, network.fc.weight)


def test_a_layer_that_is_called_head_is_not_taken_for_the_head(tmp_path: Path) -> None:
    network, model, other = HeadInside(num_classes=4), own("HeadInside"), own("HeadInside")
    torch.save(network.state_dict(), tmp_path / "net.pt")
    load_weights(model, toy_config(weights=str(tmp_path / "net.pt")))
    torch.save(model.state_dict(), tmp_path / "ours.pt")
    load_weights(other, toy_config(weights=str(tmp_path / "ours.pt")))
    for each in (model, other):
        assert torch.equal(each.head.weight, network.fc.weight)
        assert torch.equal(each.state_dict()["featurizer.network.head.weight"], network.head.weight)


def test_files_that_do_not_fit_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    model, file = own("Net"), tmp_path / "net.pt"
    state = Net(num_classes=4).state_dict()
    wrong = {name: value for name, value in state.items() if name != "squeeze.bias"}
    torch.save(wrong | {"extra": torch.zeros(1), "squeeze.weight": torch.zeros(5, 2)}, file)
    with pytest.raises(UsageError) as caught:
        load_weights(model, toy_config(weights=str(file)))
    assert str(caught.value).splitlines()[1:] == [
        "  missing: featurizer.network.squeeze.bias",
        "  unknown: extra",
        "  of another shape: featurizer.network.squeeze.weight (5, 2) for (5, 144)",
    ]
    torch.save(Net(num_classes=4), file)
    with pytest.raises(UsageError, match="damaged, or holds more than tensors, and no code of a file is run"):
        load_weights(model, toy_config(weights=str(file)))
    torch.save([1, 2], file)
    with pytest.raises(UsageError, match="expected a state dict, names with tensors, got list"):
        load_weights(model, toy_config(weights=str(file)))
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(UsageError, match=r"cut.safetensors cannot be read"):
        load_weights(model, toy_config(weights=str(tmp_path / "cut.safetensors")))
    with pytest.raises(UsageError, match="--weights: there is no file"):
        load_weights(model, toy_config(weights=str(tmp_path / "absent.pt")))


def test_a_run_records_its_weights_and_is_resumed_with_the_same_content_only(command: Any, tmp_path: Path) -> None:
    import json

    file = tmp_path / "mlp.safetensors"
    safetensors.torch.save_file(create_model("mlp", input_shape=(12,), outputs=4, seed=9).state_dict(), file)
    job = ["--domains", "Toy", "--model", "mlp", "--strategy", "erm", "--trials", "1", "--out", "job", "--rounds", "1"]
    job += ["--batch-size", "8", "--local-steps", "1"]
    done = command(*job, "--weights", file)
    assert done.status == 0, done.err
    settings = json.loads((tmp_path / "job" / "config.json").read_text())["settings"]
    assert settings["weights"] == str(file)
    assert len(settings["weights_digest"]) == 64
    moved = file.rename(tmp_path / "moved.safetensors")
    assert command(*job, "--weights", moved, "--resume").status == 0
    safetensors.torch.save_file(create_model("mlp", input_shape=(12,), outputs=4, seed=8).state_dict(), moved)
    refused = command(*job, "--weights", moved, "--resume")
    assert refused.status == 2
    assert f"expected sha256 {settings['weights_digest'][:12]}..., as when the run began, got " in refused.err
