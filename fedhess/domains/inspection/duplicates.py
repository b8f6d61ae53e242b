"""Find examples that two domains share, exactly: the same bytes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhess.domains.domain import DomainData

TAIL = 4096  # bytes: the end of an image differs sooner than its beginning, which is a format's header
BATCH = 1024  # examples
Keys = npt.NDArray[np.uint64]


def file_key(path: Path) -> int:
    """Give a number that equal files share, from size and last bytes; unequal files seldom share it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        return _number(size.to_bytes(8, "little") + file.read())


def example_keys(data: DomainData) -> Keys:
    """Give a number for each example of a domain, from all of its content."""
    keys = []
    for start in range(0, len(data), BATCH):
        indices = torch.arange(start, min(start + BATCH, len(data)))
        keys += [_number(example.numpy().tobytes()) for example in data.inputs(indices).contiguous()]
    return np.array(keys, dtype=np.uint64)


def shared_files(keys: Mapping[str, Keys], files: Callable[[str], Sequence[Path]]) -> list[list[Path]]:
    """Find files that are in more than one domain.

    Memory grows with eight bytes a file and with what is shared, time with N log N.

    Args:
        keys: Domain -> (N,) `file_key` of each of its files.
        files: Gives a domain's files in the same order; called only for domains that may share one.

    Returns:
        Groups of files of the same content, each of two domains or more.
    """
    common = _in_several(keys)
    by_content: dict[str, dict[str, list[Path]]] = {}
    for domain, numbers in keys.items():
        chosen = np.flatnonzero(np.isin(numbers, common))
        paths = files(domain) if len(chosen) else []
        for index in chosen.tolist():
            by_content.setdefault(_sha256(paths[index]), {}).setdefault(domain, []).append(paths[index])
    return [[path for paths in group.values() for path in paths] for group in by_content.values() if len(group) > 1]


def shared_examples(keys: Mapping[str, Keys]) -> list[list[str]]:
    """Find examples that are in more than one domain.

    Args:
        keys: Domain -> `example_keys`.

    Returns:
        Groups of ``DOMAIN[INDEX]``.
    """
    groups: dict[int, list[str]] = {int(key): [] for key in _in_several(keys)}
    for domain, numbers in keys.items():
        for index in np.flatnonzero(np.isin(numbers, list(groups))).tolist():
            groups[int(numbers[index])].append(f"{domain}[{index}]")
    return list(groups.values())


def _in_several(keys: Mapping[str, Keys]) -> Keys:
    """Give the numbers that are in more than one domain."""
    each: Iterable[Keys] = [np.unique(numbers) for numbers in keys.values()]
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *each]), return_counts=True)
    return values[counts > 1]


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
