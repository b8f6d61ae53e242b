from pathlib import Path

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.digits.mnist import read_mnist

ALL = ("flip-0.2", "flip-0.1", "flip-0.9", "grey")


def load(root: Path, domain: str, seed: int = 0, **options: object):
    data = open_benchmark("ColoredMNIST", data_dir=root, seed=seed, options=options).load(domain)
    return data.inputs(torch.arange(len(data))), data.labels


def test_one_scenario_with_both_targets(mnist_root: Path):
    benchmark = open_benchmark("coloredmnist", data_dir=mnist_root)
    (scenario,) = benchmark.scenarios
    assert (scenario.sources, scenario.targets) == (("flip-0.2", "flip-0.1"), ("flip-0.9", "grey"))
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((2, 14, 14), 1, "mlp")
    assert benchmark.holdout == 0
    assert benchmark.title == "ColoredMNIST"


@pytest.mark.parametrize(
    ("domain", "count", "flip"), [("flip-0.2", 25000, 0.2), ("flip-0.1", 25000, 0.1), ("flip-0.9", 10000, 0.9)]
)
def test_colour_disagrees_with_the_label_as_often_as_the_name_says(
    mnist_root: Path, domain: str, count: int, flip: float
):
    images, labels = load(mnist_root, domain)
    assert images.shape == (count, 2, 14, 14)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    ink = images.sum((2, 3))
    assert ((ink > 0).sum(1) == 1).all(), "each image has one colour"
    disagreement = ((ink[:, 1] > 0) != labels.bool()).double().mean()
    assert abs(disagreement - flip) < 4 * (flip * (1 - flip) / count) ** 0.5


def test_grey_keeps_both_channels_and_colour_says_nothing(mnist_root: Path):
    grey, _ = load(mnist_root, "grey")
    assert torch.equal(grey[:, 0], grey[:, 1])
    coloured, _ = load(mnist_root, "flip-0.9")
    assert torch.equal(coloured.amax(1), grey[:, 0]), "the same digits as in the coloured target"


def test_labels_are_the_digits_with_a_quarter_flipped(mnist_root: Path):
    images, digits = read_mnist(mnist_root)
    grey, labels = load(mnist_root, "grey")
    assert torch.equal(grey[:, 0], images[50000:, ::2, ::2] / 255)
    flipped = (labels.bool() != (digits[50000:] < 5)).double().mean()
    assert abs(flipped - 0.25) < 0.02


def test_sources_share_the_first_fifty_thousand_digits(mnist_root: Path):
    images, _ = read_mnist(mnist_root)
    ink = sum(int((load(mnist_root, domain)[0] * 255).round().sum(dtype=torch.float64)) for domain in ALL[:2])
    assert ink == int(images[:50000, ::2, ::2].sum(dtype=torch.int64))


def test_label_shift_divides_the_digits_by_class(mnist_root: Path):
    _, digits = read_mnist(mnist_root)
    low, high = int((digits[:50000] < 5).sum()), int((digits[:50000] >= 5).sum())
    first, second = (load(mnist_root, domain, label_shift=True)[1] for domain in ALL[:2])
    assert (len(first), len(second)) == (low + 1500, high - 1500)
    expected = 0.75 * low / len(first) + 0.25 * 1500 / len(first)
    assert abs(first.double().mean() - expected) < 0.02
    assert abs(second.double().mean() - 0.25) < 0.02
    part = load(mnist_root, "flip-0.2", label_shift=True, per_domain=2000)[1]
    assert abs(part.double().mean() - expected) < 0.05, "a part holds both kinds of digits"


def test_a_part_is_the_beginning_of_the_whole(mnist_root: Path):
    for domain in ALL:
        whole, part = load(mnist_root, domain), load(mnist_root, domain, per_domain=100)
        assert len(part[1]) == 100
        assert torch.equal(whole[0][:100], part[0])
        assert torch.equal(whole[1][:100], part[1])


def test_the_seed_decides_everything_and_the_global_state_nothing(mnist_root: Path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = load(mnist_root, "flip-0.1", per_domain=500)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same, other = load(mnist_root, "flip-0.1", per_domain=500), load(mnist_root, "flip-0.1", seed=1, per_domain=500)
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_opened_again_by_name_and_options_it_is_the_same(mnist_root: Path):
    benchmark = open_benchmark(
        "ColoredMNIST", data_dir=mnist_root, seed=3, options={"per_domain": "50", "label_shift": "yes"}
    )
    assert benchmark.options["per_domain"] == 50
    assert benchmark.options["label_shift"] is True
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert again.identity() == benchmark.identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "irn"}, "has no form 'irn'; did you mean 'irm'"),
        ({"per_domain": -1}, "per_domain must be 0 .all. or more, got -1"),
        ({"per_domain": "many"}, "option 'per_domain' must be int .default 0., got 'many'"),
        ({"label_shift": "perhaps"}, "option 'label_shift' must be bool .default False., got 'perhaps'"),
        ({"per_domian": 3}, "no option 'per_domian'; did you mean 'per_domain'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        open_benchmark("ColoredMNIST", options=options)
