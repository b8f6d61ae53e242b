"""The training augmentation of DomainBed, for a whole batch at once on the device that it is on.

Each example is transformed as ``torchvision.transforms`` would transform it alone, with its own parameters::

    RandomResizedCrop(side, scale=(0.7, 1), ratio=(3/4, 4/3)), RandomHorizontalFlip(), ColorJitter(.3, .3, .3, .3),
    RandomGrayscale(.1)

Source: Gulrajani and Lopez-Paz 2021, "In search of lost domain generalization", released code, ``datasets.py``; here
the models normalise (`models.headed.ScaleImages`). Deviations: colours stay floating-point numbers throughout, while
torchvision rounds to one of 256 values after every operation on a PIL image; and crops are taken from the stored
square, which is decoded once, not from the file. Parameters are drawn on the CPU, so that they are the same on every
device.

Brightness, contrast, saturation and grayscale are one map, a blend of x with a target t: clamp(f x + (1 - f) t), where
t is 0, the image's mean grey, or each pixel's grey. A batch whose examples apply the four jitters in different orders
needs three blends, the hue, three more blends and one for grayscale; an example skips the blends that it does not need
(f = 1). On a CPU images are processed one by one, each with the operations that it needs, while it is in the cache; on
other devices the whole batch is processed at once, which takes few kernels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.base.environment import torch_threads
from fedhess.base.transfers import send

SCALE = (0.7, 1.0)  # of the area
RATIO = (3 / 4, 4 / 3)  # width by height
ATTEMPTS = 10  # at a crop that fits, as in torchvision
JITTER, GRAYSCALE = 0.3, 0.1  # largest change of a factor; probability
GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as in torchvision
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLENDS, HUE_AT = 7, 3  # three before the hue, three after it, grayscale
CPU_CHUNK = 4  # images cropped together on a CPU: what its cache holds


@dataclass(frozen=True)
class Parameters:
    """The augmentation parameters of each example of a batch; all on the CPU."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width of the crop, pixels
    flips: Tensor  # (B,) bool
    order: Tensor  # (B, 4) int64, each row a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE
    factors: Tensor  # (B, 4) float32, columns BRIGHTNESS to HUE: three blend factors, then the hue's shift in turns
    greys: Tensor  # (B,) bool


def augment(images: Tensor, *, generator: torch.Generator, aspects: Tensor | None = None) -> Tensor:
    """Augment a batch as DomainBed does.

    Args:
        images: (B, 3, H, W), uint8 or floating-point in [0, 1]; not written to.
        generator: On the CPU; decides every parameter.
        aspects: (B,) width over height of each image before it was resized to (H, W), so that crops have the shape that
            they would have had in that image. W / H by default.

    Returns:
        (B, 3, H, W) float32 in [0, 1] (float64 for float64 images), on the images' device.

    >>> pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> augment(pixels, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    count, _, height, width = images.shape
    parameters = draw(count, size=(height, width), generator=generator, aspects=aspects)
    return (apply_one_by_one if images.device.type == "cpu" else apply_at_once)(images, parameters)


def draw(count: int, *, size: tuple[int, int], generator: torch.Generator, aspects: Tensor | None = None) -> Parameters:
    """Draw the parameters of ``count`` images of (height, width) pixels, distributed as torchvision's."""
    boxes = _draw_boxes(count, size=size, generator=generator, aspects=aspects)
    flips = torch.rand(count, generator=generator) < 0.5
    order = torch.rand(count, 4, generator=generator).argsort(1)
    factors = torch.empty(count, 4).uniform_(1 - JITTER, 1 + JITTER, generator=generator)
    factors[:, HUE].uniform_(-JITTER, JITTER, generator=generator)
    greys = torch.rand(count, generator=generator) < GRAYSCALE
    return Parameters(boxes=boxes, flips=flips, order=order, factors=factors, greys=greys)


def apply_at_once(images: Tensor, parameters: Parameters) -> Tensor:
    """Augment all examples in the same operations, without ever waiting for the device."""
    out = _resample(images, boxes=parameters.boxes, flips=parameters.flips)
    blends = send(_blends(parameters), out.device).to(out.dtype)[:, :, :, None, None, None]
    turns = send(_hue_maps(parameters.factors[:, HUE]), out.device)
    _recolour(out, [blend.unbind(1) for blend in blends.unbind(1)], turns)
    return out


def apply_one_by_one(images: Tensor, parameters: Parameters) -> Tensor:
    """Augment one example after the other, each with the operations that it needs.

    Colour operations run on a single thread: one on a single image ends before a second thread has woken up.
    """
    blends, turns = _blends(parameters), _hue_maps(parameters.factors[:, HUE])
    out = torch.empty(images.shape, dtype=torch.promote_types(images.dtype, torch.float32))
    for start in range(0, len(images), CPU_CHUNK):
        part = slice(start, start + CPU_CHUNK)
        out[part] = _resample(images[part], boxes=parameters.boxes[part], flips=parameters.flips[part])
    with torch_threads(1):
        for number, own in enumerate(blends.tolist()):
            _recolour(out[number : number + 1], own, turns[number : number + 1])
    return out


def _resample(images: Tensor, *, boxes: Tensor, flips: Tensor) -> Tensor:
    """Crop each example, resize the crop to the size of the images, bilinearly, and mirror it.

    A crop is never larger than its image: resizing never shrinks, and antialiasing would change nothing.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    unit = images.to(dtype) if images.is_floating_point() else images / 255
    height, width = images.shape[2:]
    top, left, box_height, box_width = send(boxes.to(dtype), unit.device).unbind(1)
    rows, columns = _positions(top, box_height, height), _positions(left, box_width, width)
    columns = torch.where(send(flips, unit.device)[:, None], columns.flip(1), columns)
    none = torch.zeros_like(columns)[:, None, :]  # writing pairs as complex numbers is fastest
    grid = torch.view_as_real(
        torch.complex(columns[:, None, :], none) + torch.complex(none[:, :, :1], rows[:, :, None])
    )
    return functional.grid_sample(unit, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where the samples of a crop lie on an axis of ``size`` pixels: (B, size) in ``grid_sample``'s [-1, 1]."""
    centres = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5
    within = (centres * (length[:, None] / size) - 0.5).clamp_min(0).minimum(length[:, None] - 1)
    return (2 * (start[:, None] + within) + 1) / size - 1


def _draw_boxes(count: int, *, size: tuple[int, int], generator: torch.Generator, aspects: Tensor | None) -> Tensor:
    """Draw crops: the first of ten attempts that fits, else the largest in the middle that has an allowed ratio."""
    whole = torch.tensor(size, dtype=torch.float64)
    aspect = torch.full((count, 1), size[1] / size[0], dtype=torch.float64) if aspects is None else aspects[:, None]
    areas = torch.empty(count, ATTEMPTS, dtype=torch.float64).uniform_(*SCALE, generator=generator)
    ratios = torch.empty(count, ATTEMPTS, dtype=torch.float64)
    ratios.uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=generator).exp_()
    shares = torch.stack([areas * aspect.double() / ratios, areas * ratios / aspect.double()], dim=2).sqrt_()
    tried = (shares * whole).round_()  # (B, attempts, 2): height and width
    fits = ((tried > 0) & (tried <= whole)).all(2)
    lengths = tried[torch.arange(count), fits.int().argmax(1)]
    corners = (torch.rand(count, 2, dtype=torch.float64, generator=generator) * (whole - lengths + 1)).floor()
    middle = torch.cat([aspect.double() / RATIO[0], RATIO[1] / aspect.double()], dim=1).clamp_(max=1)
    middle = (middle * whole).round_().clamp_(min=1)
    found = fits.any(1, keepdim=True)
    begins = torch.where(found, corners, ((whole - middle) / 2).floor())
    return torch.cat([begins, torch.where(found, lengths, middle)], dim=1).long()


def _blends(parameters: Parameters) -> Tensor:
    """Write colour changes as blends, (B, 7, 3): x becomes clamp([0] x + [1] mean grey + [2] grey)."""
    count, factors = len(parameters.factors), parameters.factors[:, :HUE]
    kinds = torch.zeros(count, HUE, 3)
    kinds[:, :, 0] = factors
    kinds[:, CONTRAST, 1] = 1 - factors[:, CONTRAST]
    kinds[:, SATURATION, 2] = 1 - factors[:, SATURATION]
    blends = torch.tensor([1.0, 0.0, 0.0]).repeat(count, BLENDS, 1)
    places = parameters.order.argsort(1)  # position of each jitter in an example's order
    slots = torch.where(places[:, :HUE] < places[:, HUE:], places[:, :HUE], places[:, :HUE] + 2)
    blends.scatter_(1, slots[:, :, None].expand(-1, -1, 3), kinds)
    blends[parameters.greys, -1] = torch.tensor([0.0, 0.0, 1.0])
    return blends


def _hue_maps(shifts: Tensor) -> Tensor:
    """Write shifts of the hue, (B,) in turns in [-1/2, 1/2], as (B, 3, 4) coefficients of r, g, b and v + m.

    Around the circle of hues each channel stays at the largest value v for two sixths of a turn, falls for one, stays
    at the smallest value m for two and rises for one. Given the other two channels, its value d sixths further on, d in
    [0, 1], needs neither case distinctions nor the hue itself::

        r' = clamp(r - g + (2 d - 1) b + (1 - d) (v + m), m, v)        and so on: g for r, b for g, r for b

    For a shift backwards g and b change places. A shift by two sixths permutes the channels, so any shift is a number
    of such permutations and a rest of at most one sixth. Up to rounding torchvision computes the same through HSV
    (Smith 1978, "Color gamut transform pairs").
    """
    changes = (3 * shifts).round()
    rest = 6 * shifts - 2 * changes
    near, far = torch.full_like(rest, -1.0), 2 * rest.abs() - 1
    ahead, behind = torch.where(rest >= 0, near, far), torch.where(rest >= 0, far, near)
    coefficients = torch.stack([torch.ones_like(rest), ahead, behind], dim=1)  # of a channel, the next, the one before
    channels = torch.arange(3)
    distances = (channels - channels[:, None] + changes.long()[:, None, None]) % 3
    mixing = coefficients[:, None, :].expand(-1, 3, -1).gather(2, distances)
    return torch.cat([mixing, (1 - rest.abs())[:, None, None].expand(-1, 3, 1)], dim=2)


def _recolour(images: Tensor, blends: Sequence[Sequence[Tensor | float]], turns: Tensor) -> None:
    """Blend, turn the hue by `_hue_maps`, blend, in place.

    Each value of the seven blends ``(factor, by mean grey, by grey)`` is a tensor (B, 1, 1, 1), or a number for all
    examples. Numbers without effect are skipped; tensors never, since reading values would make the host wait.
    """
    for number, (factor, by_mean, by_grey) in enumerate(blends):
        if number == HUE_AT:
            _turn_hue(images, turns.to(images.dtype))
        targets = []
        if _matters(by_mean):
            targets.append(_grey(images.mean((2, 3), keepdim=True)).mul_(by_mean))
        if _matters(by_grey):
            targets.append(_grey(images).mul_(by_grey))
        if targets or isinstance(factor, Tensor) or factor != 1:
            images.mul_(factor)
            for target in targets:
                images.add_(target)
            images.clamp_(0, 1)


def _matters(share: Tensor | float) -> bool:
    return isinstance(share, Tensor) or share != 0


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _turn_hue(images: Tensor, turns: Tensor) -> None:
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    mixed = torch.matmul(turns[:, :, :3], images.flatten(2)).view_as(images)
    mixed.addcmul_(largest + smallest, turns[:, :, 3:, None])
    torch.clamp(mixed, smallest, largest, out=images)
