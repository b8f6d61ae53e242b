"""A domain of image files: checked once, decoded when asked for."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, digest_of, write_atomically
from fedhess.domains.domain import Notify
from fedhess.settings.run_config import MAX_PIXELS

SCAN = "4"  # change it whenever `scan` judges, digests or measures differently
# What Pillow raises for broken files, by format: truncated and unknown ones (OSError), PNG chunks (SyntaxError) ...
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
THREADS = min(8, os.cpu_count() or 1)
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageFile(NamedTuple):
    """One example: where it lies, its name inside the data set (``dog/a.jpg``) and its label."""

    path: Path
    name: str
    label: int


@dataclass(frozen=True)
class Scan:
    """The result of reading every file once."""

    digest: str  # sha256 over names and contents of the files that can be decoded
    bad: dict[int, str]  # position -> reason, for files that cannot be decoded
    aspects: list[float]  # width / height of the files that can be decoded, in order
    keys: list[int]  # the first 64 bits of their sha256


SCANS = TypeAdapter(Scan)


class ImageDomain:
    """A domain whose images stay on disk and are decoded each time they are requested; see `DomainData`.

    Args:
        name: The domain.
        files: Its images; all can be decoded.
        digest: Of their contents.
        side: Height and width of the decoded images, pixels.
        skipped: Number of images left out because they could not be decoded.
        aspects: Width / height of the images on disk; as an attribute (N,) float64, or None if unknown.

    Attributes:
        reads_files: Reading takes long enough to be done ahead; see `fedhess.base.prefetching`.
    """

    groups: Tensor | None = None
    reads_files = True

    def __init__(
        self,
        name: str,
        files: Sequence[ImageFile],
        *,
        digest: str,
        side: int,
        skipped: int = 0,
        aspects: Sequence[float] | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self.skipped = skipped
        self.side = side
        self.labels = torch.tensor([file.label for file in files])
        self.aspects = None if aspects is None else torch.tensor(aspects, dtype=torch.float64)
        self._files = files

    def __len__(self) -> int:
        """Return N."""
        return len(self._files)

    def inputs(self, indices: Tensor) -> Tensor:
        """Decode images to (B, 3, side, side) uint8 RGB, without keeping their proportions.

        Raises:
            UsageError: A file that could be decoded before no longer can.
        """
        images = in_threads(self.decode, indices.tolist())
        return torch.stack(images) if images else torch.empty((0, 3, self.side, self.side), dtype=torch.uint8)

    def decode(self, index: int) -> Tensor:
        """Decode one image: (3, side, side) uint8 RGB; see `inputs`."""
        path = self._files[index].path
        try:
            with Image.open(path) as image:
                return read_pixels(image, self.side)
        except DECODE_ERRORS as error:
            raise UsageError(
                f"{path} can no longer be decoded ({describe_failure(error)}); was it changed during the run?"
            ) from error


def limit_pixels(most: int) -> None:
    """Make Pillow refuse images of more than ``most`` pixels in this process; by default it only warns."""
    Image.MAX_IMAGE_PIXELS = most // 2  # Pillow refuses images with more than twice this number
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


limit_pixels(MAX_PIXELS)


def read_pixels(image: Image.Image, side: int) -> Tensor:
    """Convert an opened image to (3, side, side) uint8 RGB, without keeping its proportions."""
    rgb = to_rgb(image)
    if rgb.size != (side, side):
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def load_images(
    domain: str,
    files: Sequence[ImageFile],
    *,
    side: int,
    skip_bad_images: bool,
    cache_dir: Path | None,
    notify: Notify,
) -> ImageDomain:
    """Check every image of a domain, so that a broken one is found now and not during training; see `scan`.

    Raises:
        UsageError: Images are broken and not to be skipped, or none is left.
    """
    outcome = scan(domain, files, cache_dir=cache_dir, notify=notify)
    good = [file for position, file in enumerate(files) if position not in outcome.bad]
    skipped = len(outcome.bad)
    if skipped:
        first = min(outcome.bad)
        what = f"{skipped} of {len(files)} images of domain {domain!r} cannot be decoded"
        if not skip_bad_images or not good:
            raise UsageError(
                f"{what}, the first {files[first].path} ({outcome.bad[first]}); replace or delete "
                f"{'it' if skipped == 1 else 'them'}, or begin a job without such images: --skip-bad-images"
            )
        notify(f"{what} and are left out, the first {files[first].path}")
    return ImageDomain(domain, good, digest=outcome.digest, side=side, skipped=skipped, aspects=outcome.aspects)


def scan(domain: str, files: Sequence[ImageFile], *, cache_dir: Path | None, notify: Notify) -> Scan:
    """Read and decode every file once; the outcome is cached until the `_state` of a file changes.

    It is not cached if a file could not be read at all, since reading may succeed the next time.
    """
    seen = digest_of([SCAN, f"at most {Image.MAX_IMAGE_PIXELS}", *map(_state, files)])
    path = cache_directory(cache_dir) / "scans" / f"{seen[:32]}.json"
    try:
        kept = SCANS.validate_json(path.read_bytes())
        if len(kept.bad) + len(kept.aspects) == len(files):
            return kept
    except (OSError, ValueError):
        pass  # no file, or an incomplete one after a power cut
    notify(f"checking {len(files)} images of {domain}")
    findings = in_threads(_check, files)
    good = [
        (file, sha256, aspect) for file, (reason, sha256, aspect) in zip(files, findings, strict=True) if not reason
    ]
    outcome = Scan(
        digest=digest_of(part for file, sha256, _ in good for part in (file.name, sha256)),
        bad={position: reason for position, (reason, _, _) in enumerate(findings) if reason},
        aspects=[aspect for _, _, aspect in good],
        keys=[int(sha256[:16], 16) for _, sha256, _ in good],
    )
    if all(sha256 for _, sha256, _ in findings):
        write_atomically(path, lambda out: out.write(SCANS.dump_json(outcome)))
    return outcome


def _check(file: ImageFile) -> tuple[str, str, float]:
    """Read and decode a file; return why it cannot be decoded, its sha256 if it could be read, and width / height."""
    sha256 = ""
    try:
        content = file.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            aspect = image.width / image.height
            # JPEG: decodes every coefficient, but renders an eighth of the size. Other formats ignore it.
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            to_rgb(image)
    except DECODE_ERRORS as error:
        return "empty file" if sha256 and not content else describe_failure(error), sha256, 1.0
    return "", sha256, aspect


def _state(file: ImageFile) -> str:
    """Identify the file at a path: copies of trees often have the same sizes and times of modification."""
    where = f"{os.path.abspath(file.path)} {file.name}"
    try:
        found = file.path.stat()
    except OSError as error:
        return f"{where} {error.strerror}"
    return f"{where} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB; refuse greyscale of more bits, which Pillow clips at 255 and so turns white."""
    if image.mode.partition(";")[0] in ("I", "F"):
        raise ValueError(f"16-bit or float greyscale, Pillow's mode {image.mode}; convert it to 8 bits")
    return image.convert("RGB")


def describe_failure(error: BaseException) -> str:
    """Describe why an image cannot be decoded, without a path or an address in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}; raise the limit with --max-pixels if you know the image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to items, in order, in threads: Pillow decodes without holding the interpreter."""
    if len(items) < 2 or THREADS < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        return list(pool.map(function, items))
