"""Every augmentation against torchvision's: the same pixels for the same parameters, the same distribution of these."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from math import sqrt

import pytest
import torch
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional

from fedhess.federation.client.augmentation import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Parameters,
    apply_at_once,
    apply_one_by_one,
    augment,
    draw,
)

SIDE = 24
ADJUST = {
    BRIGHTNESS: functional.adjust_brightness,
    CONTRAST: functional.adjust_contrast,
    SATURATION: functional.adjust_saturation,
    HUE: functional.adjust_hue,
}
Apply = Callable[[Tensor, Parameters], Tensor]
both_ways = pytest.mark.parametrize("apply", [apply_at_once, apply_one_by_one])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Pixels of all kinds: noise, grey, black and white, pure colours."""
    pixels = torch.randint(0, 256, (24, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator())
    pixels[1] = pixels[1, :1]
    pixels[2], pixels[3] = 0, 255
    pixels[4] = (pixels[4] > 127).to(torch.uint8) * 255
    return pixels


def nothing(count: int) -> Parameters:
    """Parameters that change nothing."""
    return Parameters(
        boxes=torch.tensor([0, 0, SIDE, SIDE]).repeat(count, 1),
        flips=torch.zeros(count, dtype=torch.bool),
        order=torch.arange(4).repeat(count, 1),
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        greys=torch.zeros(count, dtype=torch.bool),
    )


def by_torchvision(image: Tensor, parameters: Parameters, number: int) -> Tensor:
    """Augment one image, (3, H, W) in [0, 1], with torchvision's functions."""
    top, left, height, width = parameters.boxes[number].tolist()
    image = functional.resized_crop(image, top, left, height, width, list(image.shape[1:]), antialias=True)
    if parameters.flips[number]:
        image = functional.horizontal_flip(image)
    for jitter in parameters.order[number].tolist():
        image = ADJUST[jitter](image, float(parameters.factors[number, jitter]))
    return functional.rgb_to_grayscale(image, num_output_channels=3) if parameters.greys[number] else image


def assert_pixels(apply: Apply, images: Tensor, parameters: Parameters) -> None:
    expected = torch.stack([by_torchvision(image / 255, parameters, n) for n, image in enumerate(images)])
    torch.testing.assert_close(apply(images, parameters), expected, rtol=0, atol=2e-5)


# -- Pixels ------------------------------------------------------------------------------------------------------------


@both_ways
def test_crop_is_torchvisions_antialiased_resize(apply: Apply, images: Tensor) -> None:
    boxes = draw(24, size=(SIDE, SIDE), generator=generator(1)).boxes
    boxes[5] = torch.tensor([3, 4, 1, 1])
    boxes[6] = torch.tensor([0, 5, SIDE, 2])
    assert_pixels(apply, images, replace(nothing(24), boxes=boxes))


@both_ways
@pytest.mark.parametrize("jitter", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_jitter_is_torchvisions(apply: Apply, jitter: int, images: Tensor) -> None:
    parameters = nothing(24)
    low, high = (-0.5, 0.5) if jitter == HUE else (0.0, 2.0)
    parameters.factors[:, jitter] = torch.linspace(low, high, 24)
    assert_pixels(apply, images, parameters)
    assert (apply(images, parameters)[:24:23] - images[:24:23] / 255).abs().max() > 0.1


@both_ways
@pytest.mark.parametrize("first", range(4))
def test_jitters_in_every_order_are_torchvisions(apply: Apply, first: int, images: Tensor) -> None:
    drawn = draw(6, size=(SIDE, SIDE), generator=generator(2))
    others = [jitter for jitter in range(4) if jitter != first]
    orders = [[first, *rest] for rest in permutations(others)]
    assert_pixels(apply, images[:6], replace(drawn, order=torch.tensor(orders)))


@both_ways
@pytest.mark.parametrize("shape", [(24, 24), (20, 31)])
def test_drawn_augmentations_are_torchvisions(apply: Apply, shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (64, 3, *shape), dtype=torch.uint8, generator=generator(3))
    assert_pixels(apply, pixels, draw(64, size=shape, generator=generator(4)))


@both_ways
def test_float64_images_stay_float64_and_nobodys_images_are_written_to(apply: Apply, images: Tensor) -> None:
    parameters = draw(24, size=(SIDE, SIDE), generator=generator(5))
    exact = images.double() / 255
    for given in (images, exact, images / 255):
        before = given.clone()
        result = apply(given, parameters)
        assert result.dtype == (torch.float64 if given is exact else torch.float32)
        torch.testing.assert_close(result.double(), apply(exact, parameters), rtol=0, atol=2e-5)
        assert torch.equal(given, before)


def test_nothing_is_looked_at_that_an_accelerator_would_have_to_be_waited_for() -> None:
    parameters = draw(5, size=(SIDE, SIDE), generator=generator())
    without_values = torch.empty(5, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
    assert apply_at_once(without_values, parameters).shape == (5, 3, SIDE, SIDE)


def test_same_generator_same_pixels_and_every_example_its_own() -> None:
    same = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator()).expand(8, -1, -1, -1)
    first, again, other = (augment(same, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.equal(first[0], image) for image in first[1:])


def test_the_global_random_state_is_left_alone(images: Tensor) -> None:
    state = torch.get_rng_state()
    augment(images, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)


# -- Distributions -----------------------------------------------------------------------------------------------------

DRAWS = 4000


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Two-sample Kolmogorov-Smirnov test, level 0.001."""
    ours, theirs = ours.double().sort().values, theirs.double().sort().values
    points = torch.cat([ours, theirs])
    shares = [torch.searchsorted(sample, points, right=True) / len(sample) for sample in (ours, theirs)]
    statistic = float((shares[0] - shares[1]).abs().max())
    assert statistic < 1.95 * sqrt(1 / len(ours) + 1 / len(theirs)), statistic


def test_the_comparison_of_distributions_sees_a_small_difference() -> None:
    one, other = torch.rand(2, DRAWS, generator=generator())
    assert_same_distribution(one, other)
    with pytest.raises(AssertionError):
        assert_same_distribution(one, other * 0.95)


@pytest.fixture
def seeded() -> object:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("native", "blur"), [((224, 224), 0.01), ((300, 224), 0.01), ((150, 400), 0.01), ((900, 200), 0.3)]
)
def test_crops_are_distributed_as_torchvisions_on_the_file(native: tuple[int, int], blur: float) -> None:
    height, width = native
    canvas = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(canvas, [0.7, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)])
    theirs = theirs / torch.tensor([height, width, height, width])
    aspects = torch.full((DRAWS,), width / height, dtype=torch.float64)
    boxes = draw(DRAWS, size=(224, 224), generator=generator(12), aspects=aspects).boxes
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 224).all()
    ours = boxes / 224
    grain = blur * torch.rand(4, DRAWS, generator=generator(13))  # their pixels are of different sizes
    other = blur * torch.rand(4, DRAWS, generator=generator(14))
    for axis in range(4):
        assert_same_distribution(ours[:, axis] + grain[axis], theirs[:, axis] + other[axis])
    assert_same_distribution(ours[:, 2] * ours[:, 3] + grain[0], theirs[:, 2] * theirs[:, 3] + other[0])  # area
    ratios = [(boxes[:, 3] / boxes[:, 2]).log() for boxes in (ours, theirs)]
    assert_same_distribution(ratios[0] + grain[1], ratios[1] + other[1])


@pytest.mark.usefixtures("seeded")
def test_jitters_are_distributed_as_torchvisions() -> None:
    ranges = [[0.7, 1.3]] * 3 + [[-0.3, 0.3]]
    theirs = [ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    ours = draw(DRAWS, size=(8, 8), generator=generator(15))
    for jitter, (low, high) in enumerate(ranges):
        factors = ours.factors[:, jitter]
        assert low <= float(factors.min()) < low + 0.01
        assert high - 0.01 < float(factors.max()) <= high
        assert_same_distribution(factors, torch.tensor([each[1 + jitter] for each in theirs]))
    weights = 4 ** torch.arange(4)
    codes, counts = (ours.order * weights).sum(1).unique(return_counts=True)
    assert set(codes.tolist()) == {int((each[0] * weights).sum()) for each in theirs}
    chi_square = float(((counts - DRAWS / 24) ** 2 / (DRAWS / 24)).sum())
    assert chi_square < 49.7  # 23 degrees of freedom, level 0.001


def test_half_are_mirrored_and_a_tenth_lose_their_colour() -> None:
    drawn = draw(DRAWS, size=(8, 8), generator=generator(16))
    for chosen, share in ((drawn.flips, 0.5), (drawn.greys, 0.1)):
        assert float(chosen.float().mean()) == pytest.approx(share, abs=3.3 * sqrt(share * (1 - share) / DRAWS))


def test_parameters_of_an_example_are_independent() -> None:
    drawn = draw(DRAWS, size=(224, 224), generator=generator(17))
    columns = torch.cat([drawn.factors, drawn.flips[:, None], drawn.greys[:, None], drawn.order[:, :3]], 1)
    correlations = torch.corrcoef(columns.double().T)[:6, :6]
    assert (correlations - torch.eye(6)).abs().max() < 4.5 / sqrt(DRAWS)
