"""A domain whose images a user's torch ``Dataset`` yields: read once for digest and labels, decoded when asked for."""

import hashlib
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import digest_of
from fedhess.base.users_code import users_code
from fedhess.domains.images.image_files import DECODE_ERRORS, ImageDomain, ImageFile, in_threads, read_pixels, to_rgb


class DatasetImages(ImageDomain):
    """The (PIL image, label) pairs of a ``Dataset``; see `ImageDomain`.

    Args:
        name: The domain.
        dataset: One thread at a time asks it for an item.
        side: Height and width of the decoded images, pixels.
        what: What it is, for messages.
    """

    def __init__(self, name: str, dataset: Any, *, side: int, what: str) -> None:
        self._dataset, self._what, self._lock = dataset, what, Lock()
        found = in_threads(self._look, range(len(dataset)))
        if self._look(0) != found[0]:
            raise UsageError(
                f"{what}: its first example is another when it is read again; leave random transforms out, since "
                "--augment does that while training"
            )
        super().__init__(
            name,
            [ImageFile(Path(), str(number), label) for number, (label, _, _) in enumerate(found)],
            digest=digest_of([name, *(part for label, sha256, _ in found for part in (str(label), sha256))]),
            side=side,
            aspects=[aspect for _, _, aspect in found],
        )

    def decode(self, index: int) -> Tensor:
        """Decode one image: (3, side, side) uint8 RGB."""
        return read_pixels(self._read(index)[0], self.side)

    def _look(self, index: int) -> tuple[int, str, float]:
        """Return label, digest of size and pixels, width by height."""
        rgb, label = self._read(index)
        pixels = f"{rgb.size}".encode() + np.asarray(rgb).tobytes()
        return label, hashlib.sha256(pixels).hexdigest(), rgb.width / rgb.height

    def _read(self, index: int) -> tuple[Image.Image, int]:
        with self._lock, users_code(self._what, f"example {index}", type(self._dataset).__getitem__):
            item = self._dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], Image.Image):
            raise UsageError(f"{self._what}, example {index}: expected (PIL image, label), got {item!r:.100}")
        try:
            return to_rgb(item[0]), whole_label(item[1], f"{self._what}, example {index}")
        except DECODE_ERRORS as error:
            raise UsageError(f"{self._what}, example {index}: {error}; replace it, or leave it out") from error


def whole_label(value: Any, where: str) -> int:
    """Return a label as a number."""
    try:
        if (label := int(value)) == value:
            return label
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # a name, several numbers, None
    raise UsageError(f"{where}: expected a whole number as label, got {value!r:.100}")
