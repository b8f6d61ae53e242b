from pathlib import Path

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, rotate, to_pil_image

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.digits.mnist import read_mnist

ANGLES = ("0", "15", "30", "45", "60", "75")


def load(root: Path, domain: str, seed: int = 0, **options: object):
    data = open_benchmark("RotatedMNIST", data_dir=root, seed=seed, options=options).load(domain)
    return data.inputs(torch.arange(len(data))), data.labels


def test_each_angle_is_left_out_once(mnist_root: Path):
    benchmark = open_benchmark("rotatedmnist", data_dir=mnist_root)
    assert benchmark.domains == ANGLES
    assert [scenario.targets for scenario in benchmark.scenarios] == [(angle,) for angle in ANGLES]
    assert all(len(scenario.sources) == 5 for scenario in benchmark.scenarios)
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((1, 28, 28), 10, "mlp")
    assert benchmark.title == "RotatedMNIST"


def test_domains_share_the_seventy_thousand_digits(mnist_root: Path):
    _, train = read_mnist(mnist_root)
    _, test = read_mnist(mnist_root, part="test")
    labels = [load(mnist_root, angle)[1] for angle in ANGLES]
    assert [len(part) for part in labels] == [11667] * 4 + [11666] * 2
    assert torch.equal(torch.cat(labels).bincount(), torch.cat([train, test]).bincount())


def test_domain_0_holds_digits_as_they_are_each_once(mnist_root: Path):
    images, labels = load(mnist_root, "0")
    assert images.shape == (11667, 1, 28, 28)
    assert images.dtype == torch.uint8
    whole = [torch.cat(both) for both in zip(read_mnist(mnist_root), read_mnist(mnist_root, part="test"), strict=True)]
    numbers = {image.numpy().tobytes(): index for index, image in enumerate(whole[0])}
    found = [numbers[image.numpy().tobytes()] for image in images]
    assert len(set(found)) == len(found)
    assert torch.equal(whole[1][found], labels)


@pytest.mark.parametrize("angle", ANGLES)
def test_images_are_turned_as_torchvision_turns_them(mnist_root: Path, angle: str, monkeypatch: pytest.MonkeyPatch):
    turned, _ = load(mnist_root, angle, per_domain=50)
    monkeypatch.setattr("fedhess.domains.digits.rotated_mnist.ANGLES", dict.fromkeys(ANGLES, 0))
    upright, _ = load(mnist_root, angle, per_domain=50)
    for image, found in zip(upright, turned, strict=True):
        pillow = rotate(to_pil_image(image), int(angle), interpolation=InterpolationMode.BILINEAR, fill=[0])
        assert torch.equal(pil_to_tensor(pillow), found)


def test_a_part_is_the_beginning_of_the_whole(mnist_root: Path):
    whole, part = load(mnist_root, "75"), load(mnist_root, "75", per_domain=100)
    assert torch.equal(whole[0][:100], part[0])
    assert torch.equal(whole[1][:100], part[1])


def test_the_seed_decides_everything_and_the_global_state_nothing(mnist_root: Path):
    state = torch.get_rng_state()
    one = load(mnist_root, "15", per_domain=200)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same, other = load(mnist_root, "15", per_domain=200), load(mnist_root, "15", seed=1, per_domain=200)
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])


def test_opened_again_by_name_and_options_it_is_the_same(mnist_root: Path):
    benchmark = open_benchmark("RotatedMNIST", data_dir=mnist_root, seed=3, options={"per_domain": "20"})
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert again.identity() == benchmark.identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_domain": -1}, "RotatedMNIST: per_domain must be 0 .all. or more, got -1"),
        ({"angles": 3}, "RotatedMNIST has no option 'angles'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        open_benchmark("RotatedMNIST", options=options)
