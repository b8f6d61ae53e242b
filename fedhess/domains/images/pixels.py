"""The decoded images of a domain in one memory-mapped file, each decoded once.

The file holds a checksum for every image, then the pixels of every image. An image's pixels are written before its
checksum, so an image is complete once its checksum is there. Filling can therefore continue after a kill, two processes
can fill one file at the same time (they write the same bytes), and a damaged image is detected when it is read.
"""

import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import CACHE_VARIABLE, cache_directory, digest_of
from fedhess.domains.domain import DomainData, Notify, keep_silent
from fedhess.domains.images.image_files import ImageDomain, in_threads

logger = logging.getLogger(__name__)

DECODING = "1"  # change it whenever `ImageDomain.decode` does
PAGE = 4096
AT_ONCE = 64  # images between two progress reports
CHANNELS = 3


class StoredImages:
    """A domain whose decoded images are read from a file; see `DomainData` and `ImageDomain`.

    Args:
        images: The domain on disk; images that the file lacks are decoded from it.
        path: The file; created if absent.
    """

    reads_files = True

    def __init__(self, images: ImageDomain, path: Path) -> None:
        self.name = images.name
        self.labels = images.labels
        self.groups = images.groups
        self.digest = images.digest
        self.skipped = images.skipped
        self.aspects = images.aspects
        self.path = path
        self._images = images
        shape = (len(images), CHANNELS, images.side, images.side)
        self._offset = _offset(len(images))
        try:
            if not path.exists() or path.stat().st_size < store_bytes(images):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
                os.truncate(path, store_bytes(images))  # the new part reads as zeros
            self._sums: npt.NDArray[np.uint32] = np.memmap(path, np.uint32, mode="r", shape=(len(images),))
            self._pixels: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r", offset=self._offset, shape=shape)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._checked = np.zeros(len(images), dtype=bool)

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def missing(self) -> list[int]:
        """List the images that the file does not hold yet."""
        return [int(number) for number in np.flatnonzero(self._sums == 0)]

    def inputs(self, indices: Tensor) -> Tensor:
        """Read images as `ImageDomain.inputs` does; images damaged in the file are decoded again, with a warning."""
        numbers = indices.numpy()
        found = np.empty((len(numbers), *self._pixels.shape[1:]), dtype=np.uint8)
        np.take(self._pixels, numbers, axis=0, out=found, mode="clip")  # "raise" would copy once more
        assert len(numbers) == 0 or 0 <= numbers.min() <= numbers.max() < len(self), numbers
        damaged: list[int] = []
        for position in np.flatnonzero(~self._checked[numbers]):
            number = int(numbers[position])
            if _checksum(found[position]) != self._sums[number]:
                damaged.append(number)
                found[position] = self.fill(number)
            self._checked[number] = True
        if damaged:
            logger.warning(
                "%s: %d of %d images read were missing or damaged and have been decoded again", self.path, len(damaged),
                len(numbers),
            )  # fmt: skip
        return torch.from_numpy(found)

    def fill(self, number: int) -> npt.NDArray[np.uint8]:
        """Decode one image and write it: the pixels, then their checksum."""
        pixels: npt.NDArray[np.uint8] = self._images.decode(number).contiguous().numpy()
        try:
            with self.path.open("r+b") as file:
                file.seek(self._offset + number * pixels.nbytes)
                file.write(pixels.tobytes())
                file.flush()
                file.seek(number * self._sums.itemsize)
                file.write(np.uint32(_checksum(pixels)).tobytes())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return pixels

    def fill_missing(self, numbers: Sequence[int]) -> None:
        """Fill in, in threads, the images that no other process has filled in by now."""
        in_threads(self.fill, [number for number in numbers if self._sums[number] == 0])


def store_bytes(images: ImageDomain) -> int:
    """Return the size of a domain's file."""
    return _offset(len(images)) + len(images) * CHANNELS * images.side**2


def decode_once(
    images: ImageDomain,
    *,
    cache_dir: Path | str | None = None,
    limit_gb: float | None = None,
    notify: Notify = keep_silent,
) -> StoredImages:
    """Decode every image of a domain that has not been decoded yet, and keep them in the cache."""
    require_room([images], cache_dir=cache_dir, limit_gb=limit_gb, notify=notify)
    stored = StoredImages(images, store_path(images, cache_dir))
    missing = stored.missing()
    turn = os.getpid() * 7919 % max(len(missing), 1)  # concurrent processes begin at different images
    missing = missing[turn:] + missing[:turn]
    for start in range(0, len(missing), AT_ONCE):
        notify(f"decoding {images.name}: {start} of {len(missing)} images")
        stored.fill_missing(missing[start : start + AT_ONCE])
    return stored


def require_room(
    domains: Sequence[DomainData], *, cache_dir: Path | str | None = None, limit_gb: float | None = None, notify: Notify
) -> None:
    """Check that there is disk space for the decoded images of the domains of image files."""
    found = [images for images in domains if isinstance(images, ImageDomain)]
    total = sum(map(store_bytes, found))
    paths = {store_path(images, cache_dir): images for images in found}
    needed = sum(_missing_bytes(images, path) for path, images in paths.items())
    if needed == 0:
        return
    folder = cache_directory(cache_dir)
    free = shutil.disk_usage(folder).free
    what = f"{sum(map(len, found)):,} images decoded to {found[0].side} x {found[0].side} pixels take {_gb(total)}"
    ways = "or give --images streamed, which decodes images each time they are used"
    if limit_gb is not None and total > limit_gb * 1e9:
        raise UsageError(f"--image-cache-gb {limit_gb:g}: {what}; allow more, {ways}")
    if needed > free:
        raise UsageError(
            f"--images cached: {what}; {_gb(needed)} are still to be written and {folder} has {_gb(free)} free; make "
            f"room, point {CACHE_VARIABLE} at a larger disk, {ways}"
        )
    notify(f"{what} in {folder}; {_gb(needed)} still to be written, {_gb(free)} free")


def store_path(images: ImageDomain, cache_dir: Path | str | None) -> Path:
    """Return the file of a domain; its name holds a digest of the images, their size and the decoder's version."""
    key = digest_of([DECODING, PIL.__version__, images.digest, str(images.side)])
    return cache_directory(cache_dir) / "pixels" / f"{images.name.replace('/', '_')}-{key[:20]}.u8"


def _missing_bytes(images: ImageDomain, path: Path) -> int:
    """Count the bytes of a domain's pixels that are still to be written."""
    whole = path.exists() and path.stat().st_size >= store_bytes(images)
    there = int(np.count_nonzero(np.fromfile(path, np.uint32, count=len(images)))) if whole else 0
    return (len(images) - there) * CHANNELS * images.side**2


def _offset(count: int) -> int:
    """Return where the pixels begin: at the first page boundary after 4 bytes of checksum per image."""
    return -(-4 * count // PAGE) * PAGE


def _checksum(pixels: npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32; 0 stands for a missing image."""
    return zlib.crc32(pixels.data) or 1


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written ({error}); make room, set {CACHE_VARIABLE}, or give --images streamed")
