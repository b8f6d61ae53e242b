"""The cache of derived data, and writing files so that a killed process leaves no partial file behind."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from fedhess.base.errors import StorageError, UsageError

CACHE_VARIABLE = "FEDHESS_CACHE"


def cache_directory(cache_dir: Path | str | None = None) -> Path:
    """Return the cache directory: the given one, else ``$FEDHESS_CACHE``, else ``~/.cache/fedhess``; it is created."""
    path = Path(cache_dir or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "fedhess").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cache directory {path} cannot be created ({error}); point {CACHE_VARIABLE} at a writable directory"
        ) from error
    return path


def digest_of(parts: Iterable[bytes | memoryview | str]) -> str:
    """Return the sha256 of several parts, each prefixed with its length so that they cannot run into each other.

    >>> digest_of(["ab", "c"]) == digest_of(["a", "bc"])
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that readers see the old file, the new one or none, but never a part, even after a power cut.

    ``write`` receives an open binary file. The directory is created; UsageError if it is not writable or full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def cached_tensor(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """Read a tensor from ``path`` (npy), or compute it and keep it there; concurrent processes compute it once.

    A file that cannot be read is replaced. ``path`` must contain a digest of everything the tensor depends on.
    """
    if (kept := _read_tensor(path)) is not None:
        return kept
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except OSError as error:
        raise _unwritable(path, error) from error
    with held:
        if (kept := _read_tensor(path)) is not None:
            return kept
        tensor = compute()
        write_atomically(path, lambda file: np.save(file, tensor.numpy(), allow_pickle=False))
        return tensor


def _read_tensor(path: Path) -> Tensor | None:
    try:
        array: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return torch.from_numpy(array)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written ({error}); free the disk or set {CACHE_VARIABLE}")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see it whole or not at all, whenever the process is killed.

    The write does not wait for the disk, which would cost 8 ms a file, as much as a round of a small model. Until a
    completed run is synced, a power cut can lose what was written in the last seconds.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link that leads elsewhere
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Append to a file, created if absent; a symbolic link is not followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a block that writes below ``path`` into a ``StorageError`` with advice."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror or error}; free space or fix the permissions"
        ) from error
