"""Small trees of real image files in the layouts that benchmarks are released in, drawn with IconPACS's drawings."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from fedhess.domains.iconpacs import CLASSES, DOMAINS, read_drawings

SIDE = 24  # pixels


@cache
def _drawing(number: int) -> Image.Image:
    files = [png for name in CLASSES for _, png in read_drawings(DOMAINS[number % 4])[name]]
    return Image.open(io.BytesIO(files[number % len(files)])).convert("RGBA").resize((SIDE, SIDE))


def write_image(path: Path, number: int) -> None:
    """Write the image of a number; two numbers never give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(number, path.suffix))


@cache
def _encoded(number: int, suffix: str) -> bytes:
    paper = Image.new("RGB", (SIDE + 2, SIDE), (255, 255, 255))
    paper.paste(_drawing(number % 40), (0, 0), _drawing(number % 40))
    for bit in range(SIDE):  # the number itself, at the edge
        paper.paste((0, 0, 0) if number >> bit & 1 else (255, 255, 255), (SIDE, bit, SIDE + 2, bit + 1))
    stream = io.BytesIO()
    paper.save(stream, format={".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}.get(suffix, "JPEG"), quality=95)
    return stream.getvalue()


def write_tree(root: Path, domains: Sequence[str], classes: Mapping[str, int]) -> Path:
    """Write ROOT/DOMAIN/CLASS/pic_N, as many images a class as ``classes`` says, JPEG and PNG in turn."""
    number = 0
    for domain in domains:
        for name, count in classes.items():
            (root / domain / name).mkdir(parents=True)
            for index in range(count):
                write_image(root / domain / name / f"pic_{index:03d}.{'png' if index % 2 else 'jpg'}", number)
                number += 1
    return root
