"""ColoredMNIST in both forms and RotatedMNIST, made of the real files."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, rotate, to_pil_image

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark, open_benchmark
from fedhess.domains.digits.mnist import read_mnist, read_whole_mnist
from fedhess.settings.defaults import default_settings, default_strategy_args

IRM, DOMAINBED, ROTATED = "ColoredMNIST", "ColoredMNIST form=domainbed", "RotatedMNIST"
DOMAINS = {
    IRM: ("flip-0.2", "flip-0.1", "flip-0.9", "grey"),
    DOMAINBED: ("flip-0.1", "flip-0.2", "flip-0.9"),
    ROTATED: ("0", "15", "30", "45", "60", "75"),
}
FLIPS = [(IRM, domain) for domain in DOMAINS[IRM][:3]] + [(DOMAINBED, domain) for domain in DOMAINS[DOMAINBED]]


def opened(root: Path, benchmark: str, seed: int = 0, **options: object) -> Benchmark:
    name, _, form = benchmark.partition(" form=")
    given = ({"form": form} if form else {}) | options
    return open_benchmark(name.lower(), data_dir=root, seed=seed, options=given)


@cache
def digit_of(root: Path, step: int) -> dict[bytes, int]:
    """The digit that each picture shows, of every ``step``-th row and column, by its bytes."""
    pictures, digits = read_whole_mnist(root)
    small = pictures[:, ::step, ::step]
    return {image.numpy().tobytes(): int(digit) for image, digit in zip(small, digits, strict=True)}


@cache
def load(root: Path, benchmark: str, domain: str, seed: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    data = opened(root, benchmark, seed, **options).load(domain)
    return data.inputs(torch.arange(len(data))), data.labels


@pytest.mark.parametrize(
    ("benchmark", "shape", "outputs", "model", "holdout"),
    [
        (IRM, (2, 14, 14), 1, "mlp", 0.0),
        (DOMAINBED, (2, 28, 28), 2, "mnist-cnn", 0.2),
        (ROTATED, (1, 28, 28), 10, "mlp", 0.2),
    ],
)
def test_what_is_known_before_loading(
    mnist_root: Path, benchmark: str, shape: tuple[int, ...], outputs: int, model: str, holdout: float
) -> None:
    made = opened(mnist_root, benchmark)
    assert (made.domains, made.title) == (DOMAINS[benchmark], benchmark.partition(" ")[0])
    assert (made.input_shape, made.outputs, made.default_model, made.holdout) == (shape, outputs, model, holdout)
    scenarios = [(scenario.sources, scenario.targets) for scenario in made.scenarios]
    if benchmark == IRM:
        assert scenarios == [(DOMAINS[IRM][:2], DOMAINS[IRM][2:])]
    else:
        assert scenarios == [
            (tuple(d for d in made.domains if d != target), (target,)) for target in DOMAINS[benchmark]
        ]


@pytest.mark.parametrize("benchmark", DOMAINS)
def test_opened_again_by_name_and_options_it_is_the_same(mnist_root: Path, benchmark: str) -> None:
    made = opened(mnist_root, benchmark, seed=3, per_domain="20")
    assert made.options["per_domain"] == 20
    again = open_benchmark(made.name, options=made.options)
    assert again == made
    assert again.identity() == made.identity()


@pytest.mark.parametrize("benchmark", DOMAINS)
def test_a_part_is_the_beginning_of_the_whole_and_the_seed_decides(mnist_root: Path, benchmark: str) -> None:
    state = torch.get_rng_state()
    domain = DOMAINS[benchmark][1]
    whole, part = load(mnist_root, benchmark, domain), load(mnist_root, benchmark, domain, per_domain=200)
    assert len(part[1]) == 200
    assert torch.equal(whole[0][:200], part[0])
    assert torch.equal(whole[1][:200], part[1])
    other = load(mnist_root, benchmark, domain, seed=1, per_domain=200)
    assert not torch.equal(part[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("benchmark", [DOMAINBED, pytest.param(ROTATED, marks=pytest.mark.slow)])
def test_domains_share_the_seventy_thousand_digits_each_once(mnist_root: Path, benchmark: str) -> None:
    parts = [load(mnist_root, benchmark, domain) for domain in DOMAINS[benchmark]]
    counts = [23334, 23333, 23333] if benchmark == DOMAINBED else [11667] * 4 + [11666] * 2
    assert [len(labels) for _, labels in parts] == counts
    images, digits = read_whole_mnist(mnist_root)
    if benchmark == ROTATED:
        assert torch.equal(torch.cat([labels for _, labels in parts]).bincount(), digits.bincount())
        return
    drawn = torch.cat([images.flatten(1).sum(1, dtype=torch.int64) for images, _ in parts])
    assert torch.equal(drawn.sort().values, images.flatten(1).sum(1, dtype=torch.int64).sort().values)


@pytest.mark.parametrize(("benchmark", "domain"), FLIPS)
def test_colour_disagrees_with_the_label_as_often_as_the_name_says(
    mnist_root: Path, benchmark: str, domain: str
) -> None:
    images, labels = load(mnist_root, benchmark, domain)
    assert images.dtype == (torch.float32 if benchmark == IRM else torch.uint8)
    assert (images.min(), images.max()) == (0, 1 if benchmark == IRM else 255)
    ink = images.flatten(2).amax(2) > 0
    assert (ink.sum(1) == 1).all(), "each image has one colour"
    flip = float(domain.removeprefix("flip-"))
    disagreement = (ink[:, 1] != labels.bool()).double().mean()
    assert abs(disagreement - flip) < 4 * (flip * (1 - flip) / len(labels)) ** 0.5


@pytest.mark.parametrize("benchmark", [IRM, DOMAINBED])
def test_a_quarter_of_the_labels_is_flipped(mnist_root: Path, benchmark: str) -> None:
    digits = digit_of(mnist_root, 2 if benchmark == IRM else 1)
    images, labels = load(mnist_root, benchmark, "flip-0.9")
    shown = (images.amax(1) * (255 if benchmark == IRM else 1)).round().to(torch.uint8)
    flipped = torch.tensor([digits[image.numpy().tobytes()] < 5 for image in shown]) != labels.bool()
    assert abs(flipped.double().mean() - 0.25) < 4 * (0.25 * 0.75 / len(labels)) ** 0.5


def test_form_irm_takes_the_digits_of_the_script(mnist_root: Path) -> None:
    images, _ = read_mnist(mnist_root)
    sources = [load(mnist_root, IRM, domain) for domain in DOMAINS[IRM][:2]]
    ink = sum(int((examples * 255).round().sum(dtype=torch.float64)) for examples, _ in sources)
    assert ink == int(images[:50000, ::2, ::2].sum(dtype=torch.int64)), "the first fifty thousand, each once"
    grey, coloured = load(mnist_root, IRM, "grey")[0], load(mnist_root, IRM, "flip-0.9")[0]
    assert torch.equal(grey[:, 0], images[50000:, ::2, ::2] / 255)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(coloured.amax(1), grey[:, 0]), "the same digits as in the coloured target"


def test_label_shift_divides_the_digits_by_class(mnist_root: Path) -> None:
    _, digits = read_mnist(mnist_root)
    low, high = int((digits[:50000] < 5).sum()), int((digits[:50000] >= 5).sum())
    first, second = (load(mnist_root, IRM, domain, label_shift="yes")[1] for domain in DOMAINS[IRM][:2])
    assert (len(first), len(second)) == (low + 1500, high - 1500)
    expected = 0.75 * low / len(first) + 0.25 * 1500 / len(first)
    assert abs(first.double().mean() - expected) < 0.02
    assert abs(second.double().mean() - 0.25) < 0.02
    part = load(mnist_root, IRM, "flip-0.2", label_shift=True, per_domain=2000)[1]
    assert abs(part.double().mean() - expected) < 0.05, "a part holds both kinds of digits"


def test_form_domainbed_takes_domainbeds_settings_and_no_script_s_penalties(mnist_root: Path) -> None:
    recipe = opened(mnist_root, DOMAINBED).recipe
    assert default_strategy_args("hgp", model="mnist-cnn", benchmark=recipe) == {"scale": "absolute"}
    assert default_strategy_args("hgp", model="mlp", benchmark="ColoredMNIST")["alpha"] == 2.0
    settings = default_settings("mnist-cnn", benchmark=recipe)
    assert (settings["rounds"], settings["batch_size"], settings["server_lr"]) == (5000, 64, 1e-3)
    assert opened(mnist_root, IRM).recipe == ""


def test_digests_are_what_they_were(mnist_root: Path) -> None:
    for benchmark, options, digest in (
        (IRM, {}, "e53a981ef07ef685"),
        (IRM, {"label_shift": True, "per_domain": 500}, "bf752c4651ccda5c"),
        (DOMAINBED, {}, "0192df00f77344f7"),
        (ROTATED, {"per_domain": 300}, "f5b9357b993c00b3"),
    ):
        identity = opened(mnist_root, benchmark, **options).identity()
        assert str(identity["digest"])[:16] == digest
        assert "differences" not in identity


@pytest.mark.parametrize("angle", DOMAINS[ROTATED])
def test_images_are_turned_as_torchvision_turns_them(
    mnist_root: Path, angle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned, labels = load(mnist_root, ROTATED, angle, per_domain=50)
    monkeypatch.setattr("fedhess.domains.digits.rotated_mnist.ANGLES", dict.fromkeys(DOMAINS[ROTATED], 0))
    upright = opened(mnist_root, ROTATED, per_domain=50).load(angle).inputs(torch.arange(50))
    numbers = digit_of(mnist_root, 1)
    assert [numbers[image.numpy().tobytes()] for image in upright] == labels.tolist()
    for image, found in zip(upright, turned, strict=True):
        pillow = rotate(to_pil_image(image), int(angle), interpolation=InterpolationMode.BILINEAR, fill=[0])
        assert torch.equal(pil_to_tensor(pillow), found)


@pytest.mark.parametrize(
    ("benchmark", "options", "message"),
    [
        (IRM, {"form": "irn"}, "has no form 'irn'; did you mean 'irm'"),
        (IRM, {"per_domain": -1}, "per_domain must be 0 .all. or more, got -1"),
        (IRM, {"per_domain": "many"}, "option 'per_domain' must be int .default 0., got 'many'"),
        (IRM, {"per_domain": 0.5}, "option 'per_domain' must be int .default 0., got 0.5"),
        (IRM, {"per_domain": float("inf")}, "option 'per_domain' must be int .default 0., got inf"),
        (IRM, {"per_domain": True}, "option 'per_domain' must be int"),
        (IRM, {"label_shift": "perhaps"}, "option 'label_shift' must be bool .default False., got 'perhaps'"),
        (IRM, {"per_domian": 3}, "no option 'per_domian'; did you mean 'per_domain'"),
        (DOMAINBED, {"label_shift": True}, "label_shift belongs to form irm, got it with form domainbed"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, benchmark: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, benchmark, **options)
