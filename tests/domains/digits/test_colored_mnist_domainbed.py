from pathlib import Path

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.digits.mnist import read_mnist
from fedhess.settings.defaults import default_settings, default_strategy_args

DOMAINS = ("flip-0.1", "flip-0.2", "flip-0.9")


def load(root: Path, domain: str, seed: int = 0, **options: object):
    given = {"form": "domainbed", **options}
    data = open_benchmark("ColoredMNIST", data_dir=root, seed=seed, options=given).load(domain)
    return data.inputs(torch.arange(len(data))), data.labels


@pytest.fixture(scope="module")
def whole(mnist_root: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {domain: load(mnist_root, domain) for domain in DOMAINS}


def test_each_domain_is_left_out_once(mnist_root: Path):
    benchmark = open_benchmark("coloredmnist", data_dir=mnist_root, options={"form": "domainbed"})
    assert benchmark.domains == DOMAINS
    assert [(scenario.sources, scenario.targets) for scenario in benchmark.scenarios][2] == (DOMAINS[:2], DOMAINS[2:])
    assert (benchmark.input_shape, benchmark.outputs, benchmark.holdout) == ((2, 28, 28), 2, 0.2)
    assert benchmark.default_model == "mnist-cnn"
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert "differences" not in benchmark.identity()


def test_the_settings_are_domainbeds_and_the_scripts_penalties_are_left_out(mnist_root: Path):
    recipe = open_benchmark("ColoredMNIST", data_dir=mnist_root, options={"form": "domainbed"}).recipe
    assert default_strategy_args("hgp", model="mnist-cnn", benchmark=recipe) == {"scale": "absolute"}
    assert default_strategy_args("hgp", model="mlp", benchmark="ColoredMNIST")["alpha"] == 2.0
    settings = default_settings("mnist-cnn", benchmark=recipe)
    assert (settings["rounds"], settings["batch_size"], settings["server_lr"]) == (5000, 64, 1e-3)


def test_domains_share_the_seventy_thousand_digits_each_once(
    mnist_root: Path, whole: dict[str, tuple[torch.Tensor, torch.Tensor]]
):
    assert [len(labels) for _, labels in whole.values()] == [23334, 23333, 23333]
    parts = (read_mnist(mnist_root)[0], read_mnist(mnist_root, part="test")[0])
    ink = torch.cat(parts).flatten(1).sum(1, dtype=torch.int64)
    drawn = torch.cat([images.flatten(1).sum(1, dtype=torch.int64) for images, _ in whole.values()])
    assert torch.equal(drawn.sort().values, ink.sort().values)


@pytest.mark.parametrize("domain", DOMAINS)
def test_colour_disagrees_with_the_label_as_often_as_the_name_says(
    whole: dict[str, tuple[torch.Tensor, torch.Tensor]], domain: str
):
    images, labels = whole[domain]
    assert images.dtype == torch.uint8
    ink = images.flatten(2).amax(2)
    assert ((ink > 0).sum(1) == 1).all(), "each image has one colour"
    flip = float(domain.removeprefix("flip-"))
    disagreement = ((ink[:, 1] > 0) != labels.bool()).double().mean()
    assert abs(disagreement - flip) < 4 * (flip * (1 - flip) / len(labels)) ** 0.5


def test_a_quarter_of_the_labels_is_flipped(mnist_root: Path, whole: dict[str, tuple[torch.Tensor, torch.Tensor]]):
    digits = {}
    for part in ("train", "test"):
        images, labels = read_mnist(mnist_root, part=part)
        digits |= {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    images, labels = whole["flip-0.9"]
    low = torch.tensor([digits[image.amax(0).numpy().tobytes()] < 5 for image in images])
    assert abs((low != labels.bool()).double().mean() - 0.25) < 4 * (0.25 * 0.75 / len(labels)) ** 0.5


def test_a_part_is_the_beginning_and_the_seed_decides(
    mnist_root: Path, whole: dict[str, tuple[torch.Tensor, torch.Tensor]]
):
    state = torch.get_rng_state()
    part, other = (load(mnist_root, "flip-0.2", seed=seed, per_domain=100) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(part[0], whole["flip-0.2"][0][:100])
    assert torch.equal(part[1], whole["flip-0.2"][1][:100])
    assert not torch.equal(part[0], other[0])


def test_label_shift_belongs_to_the_other_form(mnist_root: Path):
    with pytest.raises(UsageError, match="label_shift belongs to form irm, got it with form domainbed"):
        load(mnist_root, "flip-0.1", label_shift=True)


def test_form_irm_is_what_it_was(mnist_root: Path):
    benchmark = open_benchmark("ColoredMNIST", data_dir=mnist_root)
    assert benchmark.load("flip-0.2").digest[:16] == "14ac9414ce3438e7"
    assert benchmark.recipe == ""
