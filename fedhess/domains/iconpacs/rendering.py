"""Turn base drawings into images: seeded flip, rotation, size, shift and the domain's background."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fedhess.base.files import digest_of

SIDE = 96  # pixels
IMAGES_PER_CLASS = 60
ROTATION = 25.0  # degrees either way
SIZES = (0.55, 0.95)  # of SIDE
SHIFT = 0.08  # of SIDE, beyond the edge
GRAIN = 10.0  # standard deviation, in 0..255
RENDERING = "1"  # change it whenever the images do: cached ones are keyed by it

Pixels = npt.NDArray[np.float64]
Image8 = npt.NDArray[np.uint8]


def render(domain: str, *, drawings: Sequence[Sequence[bytes]]) -> Tensor:
    """Render every image of a domain.

    Each image has its own generator, from (domain, class, number): the images of one class do not depend on another's
    drawings.

    Returns:
        (C * IMAGES_PER_CLASS, 3, SIDE, SIDE) uint8, class by class.
    """
    background = BACKGROUNDS[domain]
    images = []
    for label, files in enumerate(drawings):
        bases = [Image.open(io.BytesIO(png)).convert("RGBA") for png in files]
        for number in range(IMAGES_PER_CLASS):
            rng = np.random.default_rng(int(digest_of([domain, str(label), str(number)])[:16], 16))
            canvas = background(rng)
            _place(bases[number % len(bases)], canvas=canvas, rng=rng)
            pixels = np.asarray(canvas)
            images.append(_expose(pixels, rng) if domain == "photo" else pixels)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _place(drawing: Image.Image, *, canvas: Image.Image, rng: np.random.Generator) -> None:
    """Paste a drawing on the canvas, flipped, resized, rotated and shifted at random."""
    side = round(SIDE * rng.uniform(*SIZES))
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
    drawing = drawing.rotate(rng.uniform(-ROTATION, ROTATION), Image.Resampling.BICUBIC, expand=True)
    slack = (SIDE - side) / 2 + SHIFT * SIDE
    left, top = (round((SIDE - drawing.width) / 2 + rng.uniform(-slack, slack)) for _ in range(2))
    canvas.paste(drawing, (left, top), drawing)


def _expose(pixels: Image8, rng: np.random.Generator) -> Image8:
    """Photo: a light for each image (a gain per channel) and the grain of a sensor."""
    gain = rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.15, 3)
    return np.clip(pixels * gain + rng.normal(0, GRAIN, pixels.shape), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, cells: int) -> Pixels:
    """Return smooth noise in [0, 1], (SIDE, SIDE): ``cells`` random values a side, interpolated."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64) / 255


def _between(shade: Pixels, low: Pixels, high: Pixels) -> Image.Image:
    """Blend two RGB colours by ``shade`` in [0, 1]."""
    rgb = low + shade[..., None] * (high - low)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator) -> Image.Image:
    """Photo: octaves of noise between two colours, with grain, as of a wall, a lawn or cloth."""
    weights = {3: 0.35, 8: 0.3, 24: 0.2, SIDE: 0.15}
    shade = np.sum([_noise(rng, cells) * weight for cells, weight in weights.items()], axis=0)
    shade = (shade - shade.min()) / (shade.max() - shade.min())
    return _between(shade, rng.uniform(0, 255, 3), rng.uniform(0, 255, 3))


def _gradient(rng: np.random.Generator) -> Image.Image:
    """Art painting: a linear gradient between two colours in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    shade = 0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)
    return _between(shade, rng.uniform(0, 255, 3), rng.uniform(0, 255, 3))


def _flat(rng: np.random.Generator) -> Image.Image:
    """Cartoon: one colour."""
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return Image.new("RGB", (SIDE, SIDE), (red, green, blue))


def _white(rng: np.random.Generator) -> Image.Image:
    """Sketch: white paper."""
    del rng
    return Image.new("RGB", (SIDE, SIDE), (255, 255, 255))


BACKGROUNDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "photo": _texture,
    "art_painting": _gradient,
    "cartoon": _flat,
    "sketch": _white,
}
