"""Inspect a benchmark's data for what is missing, broken, shared between domains, or unlike the complete copy."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import KnownCounts, count_classes
from fedhess.domains.domain import DomainData
from fedhess.domains.images.any_tree import read_tree
from fedhess.domains.images.image_files import scan
from fedhess.domains.images.layout import (
    ClassFolders,
    describe_ignored,
    find_classes,
    folders_by_name,
    list_images,
    some,
    subfolders,
)
from fedhess.domains.images.release import Release
from fedhess.domains.images.releases import RELEASES
from fedhess.domains.inspection.availability import availability_of
from fedhess.domains.opening import Opening

Keys = npt.NDArray[np.uint64]  # a number for each example of a domain; the same for the same content
BATCH = 1024  # examples


@dataclass
class Inspection:
    """What was found."""

    benchmark: str
    root: str = ""  # where it lies, if it is here
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # domain -> class, broken ones included
    known: KnownCounts | None = None
    problems: list[str] = field(default_factory=list)  # a sentence each
    notes: list[str] = field(default_factory=list)  # what is ignored
    broken: dict[str, str] = field(default_factory=dict)  # file -> why it cannot be decoded
    duplicates: list[list[str]] = field(default_factory=list)  # examples with the same bytes in several domains

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.problems or self.broken or self.duplicates)

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON."""
        known = {"domains": dict(self.known.domains), "classes": self.known.classes} if self.known else None
        return {**asdict(self), "ok": self.ok, "known": known}


def inspect(name: str, key: str, opening: Opening) -> Inspection:
    """Inspect a benchmark's data, wherever it is, without stopping at the first problem.

    Args:
        name: The benchmark, as the user has named it.
        key: Its key in `fedhess.domains.BENCHMARKS`.
        opening: Where to look, its options checked.
    """
    if opening.data_dir is not None and not opening.data_dir.is_dir():
        raise UsageError(f"{opening.data_dir} is no folder; give an existing one")
    try:
        if key == "folder:PATH":
            return _inspect_tree(name, opening)
        found = (
            _inspect_release(RELEASES[key].chosen(opening), opening)
            if key in RELEASES
            else _inspect_loaded(key, opening)
        )
        if found is not None:
            return found
        problem = availability_of(key).absent(key, opening)
    except UsageError as error:
        problem = str(error)
    return Inspection(key, problems=[problem])


def _inspect_release(release: Release, opening: Opening) -> Inspection | None:
    layout = release.layout
    place, folders = release.find(opening)
    if place is None:
        return None
    found = Inspection(release.name, root=str(place), known=release.known)
    try:
        release.require(layout.domains, folders, place)
    except UsageError as error:
        found.problems.append(str(error))
    classes = {domain: find_classes(folder, layout) for domain, folder in folders.items()}
    for domain, folder in folders.items():
        known = {where for several in classes[domain].values() for where in several}
        above = {parent for where in known for parent in where.parents}
        if others := [path.name for path in subfolders(folder) if path not in known | above]:
            found.notes.append(f"{folder}: no class of {found.benchmark}, ignored: {some(others)}")
    _inspect_files(found, classes, names=layout.classes, opening=opening)
    return found


def _inspect_tree(name: str, opening: Opening) -> Inspection:
    root = Path(str(opening.data_dir))
    found = Inspection(name, root=str(root))
    try:
        read_tree(root)
    except UsageError as error:
        found.problems.append(str(error))
    classes = {
        domain: {label: [where] for label, where in folders_by_name(folder).items()}
        for domain, folder in folders_by_name(root).items()
    }
    names = sorted({label for folders in classes.values() for label in folders})
    _inspect_files(found, classes, names=names, opening=opening)
    return found


def _inspect_loaded(key: str, opening: Opening) -> Inspection | None:
    """Inspect a benchmark that is made in memory, by loading every domain."""
    if availability_of(key).locate(opening) is None:
        return None
    benchmark = open_benchmark(
        opening.name or key, data_dir=opening.data_dir, options=opening.options, notify=opening.notify
    )
    found = Inspection(benchmark.name, root=str(benchmark.options.get("data_dir", "")), known=benchmark.known)
    domains = {domain: benchmark.load(domain) for domain in benchmark.domains}
    found.counts |= {domain: count_classes(data.labels, benchmark.classes) for domain, data in domains.items()}
    found.problems += benchmark.known.differences(found.counts) if benchmark.known else []
    keys = {domain: example_keys(data) for domain, data in domains.items()}
    found.duplicates = shared(keys, lambda domain, index: f"{domain}[{index}]")
    return found


def _inspect_files(
    found: Inspection, classes: Mapping[str, ClassFolders], *, names: Sequence[str], opening: Opening
) -> None:
    """Count, decode and compare the images of every domain, one domain after the other."""
    paths: dict[str, list[Path]] = {}
    keys: dict[str, Keys] = {}
    for domain, folders in classes.items():
        files = list_images(folders, names)
        outcome = scan(domain, files, cache_dir=opening.cache_dir, notify=opening.notify)
        found.broken |= {str(files[position].path): reason for position, reason in outcome.bad.items()}
        counts = np.bincount([file.label for file in files], minlength=len(names)).tolist()
        found.counts[domain] = dict(zip(names, counts, strict=True))
        paths[domain] = [file.path for position, file in enumerate(files) if position not in outcome.bad]
        keys[domain] = np.array(outcome.keys, dtype=np.uint64)
        if missing := [name for name in names if name not in folders]:
            found.problems.append(f"domain {domain!r} lacks {some(missing)}")
        if empty := [name for name in folders if not found.counts[domain][name]]:
            found.problems.append(f"domain {domain!r}: no image in the folder of {some(empty)}")
        if ignored := describe_ignored(domain, folders):
            found.notes.append(ignored)
    found.problems += found.known.differences(found.counts) if found.known else []
    found.duplicates = shared(keys, lambda domain, index: str(paths[domain][index]))


def example_keys(data: DomainData) -> Keys:
    """Return a number for each example of a domain, from all of its content."""
    keys = []
    for start in range(0, len(data), BATCH):
        indices = torch.arange(start, min(start + BATCH, len(data)))
        for example in data.inputs(indices).contiguous():
            keys.append(int.from_bytes(hashlib.blake2b(example.numpy().tobytes(), digest_size=8).digest(), "little"))
    return np.array(keys, dtype=np.uint64)


def shared(keys: Mapping[str, Keys], name: Callable[[str, int], str]) -> list[list[str]]:
    """Find examples that are in more than one domain, as groups of their names; time grows with N log N."""
    each = [np.unique(numbers) for numbers in keys.values()]
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *each]), return_counts=True)
    groups: dict[int, list[str]] = {int(value): [] for value in values[counts > 1]}
    for domain, numbers in keys.items():
        for index in np.flatnonzero(np.isin(numbers, values[counts > 1])).tolist():
            groups[int(numbers[index])].append(name(domain, index))
    return list(groups.values())
