"""Look a benchmark's data through: what is missing, broken, shared between domains, or other than the complete copy."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, KnownCounts
from fedhess.domains.images.any_tree import read_tree
from fedhess.domains.images.image_files import ImageFile, scan
from fedhess.domains.images.layout import class_folders, survey_domains
from fedhess.domains.images.release import Release
from fedhess.domains.images.walking import IMAGE_SUFFIXES, composed, entries, images_and_faulty_in, is_file, subfolders
from fedhess.domains.inspection.availability import Holding
from fedhess.domains.inspection.duplicates import Keys, example_keys, file_key, shared_examples, shared_files
from fedhess.domains.opening import Opening

ClassFolders = Mapping[str, list[Path]]  # class -> folders
SHOWN = 5  # names in a sentence


@dataclass
class Inspection:
    """What was found.

    Attributes:
        benchmark: Its name.
        root: Where it lies; "" when it is not here.
        counts: Domain -> class -> examples, those that cannot be read included.
        known: Of the complete copy, if that is known.
        problems: What is wrong, a sentence each.
        notes: What is passed over, a sentence each.
        broken: File -> why it cannot be decoded.
        duplicates: Groups of examples with the same bytes, each of more than one domain.
    """

    benchmark: str
    root: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    known: KnownCounts | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.problems or self.broken or self.duplicates)

    def to_json(self) -> dict[str, object]:
        """Give everything as JSON."""
        known = {"domains": dict(self.known.domains), "classes": self.known.classes} if self.known else None
        return {
            "benchmark": self.benchmark,
            "ok": self.ok,
            "root": self.root,
            "counts": self.counts,
            "known": known,
            "problems": self.problems,
            "notes": self.notes,
            "broken": self.broken,
            "duplicates": self.duplicates,
        }


def inspect_release(release: Release, opening: Opening) -> Inspection:
    """Look an image benchmark through, wherever it lies.

    Args:
        release: The benchmark.
        opening: Where to look; ``notify`` is told the progress.

    Returns:
        Everything that was found; it does not stop at the first problem.

    Raises:
        UsageError: The folder given cannot be read.
    """
    found = Inspection(release.name, known=release.known)
    layout = release.layout
    folders = _surveyed(found, release, opening)
    if not folders and not found.problems:
        found.problems.append(absent(release.name, release, opening))
    if not folders:
        return found
    for domain in layout.domains:
        if domain not in folders:
            found.problems.append(f"domain {domain!r} is missing; expected {layout.expected(Path(found.root))}")
    for domain, several in folders.items():
        if len(several) > 1:
            found.problems.append(f"domain {domain!r} is there more than once: {' and '.join(map(str, several))}")
    classes: dict[str, ClassFolders] = {}
    for domain, (folder, *_) in folders.items():
        try:
            classes[domain] = class_folders(domain, folder, layout)
        except UsageError as error:
            found.problems.append(str(error))
            continue
        known = {where for several in classes[domain].values() for where in several}
        above = {parent for where in known for parent in where.parents}
        _note_others(found, folder, [path for path in subfolders(folder) if path not in known | above])
    _inspect_files(found, classes, names=layout.classes, opening=opening)
    return found


def absent(name: str, holding: Holding, opening: Opening) -> str:
    """Say that data is not here, where it was looked for, and how to get it."""
    ways = "".join(f"\n  {number}. {way}" for number, way in enumerate(holding.ways(opening), start=1))
    places = ", ".join(map(str, holding.places(opening)))
    return f"{name} is not here: looked in {places}. Ways to get it:{ways}"


def _surveyed(found: Inspection, release: Release, opening: Opening) -> dict[str, list[Path]]:
    """Find the folders of the domains in the first place that has some."""
    for place in release.places(opening):
        if place == release.cached(opening) and not place.exists():
            continue
        try:
            folders = survey_domains(place, release.layout)
        except UsageError as error:
            if not place.is_dir():
                raise
            found.problems.append(str(error))
            folders = {}
        if folders or found.problems:
            found.root = str(place)
            return folders
    return {}


def inspect_tree(name: str, opening: Opening) -> Inspection:
    """Look a tree PATH/DOMAIN/CLASS of the user's own through; see `inspect_release`."""
    root = Path(str(opening.data_dir))
    found = Inspection(name, root=str(root))
    domains = {composed(folder.name): folder for folder in subfolders(root)}
    try:
        read_tree(root)
    except UsageError as error:
        found.problems.append(str(error))
    classes = {
        domain: {composed(where.name): [where] for where in subfolders(folder)} for domain, folder in domains.items()
    }
    names = tuple(sorted({name for each in classes.values() for name in each}))
    _inspect_files(found, classes, names=names, opening=opening)
    return found


def inspect_loaded(benchmark: Benchmark) -> Inspection:
    """Look a benchmark through that is made in memory, by loading every domain."""
    found = Inspection(benchmark.name, root=str(benchmark.options.get("data_dir", "")), known=benchmark.known)
    keys: dict[str, Keys] = {}
    for domain in benchmark.domains:
        data = benchmark.load(domain)
        numbers = torch.bincount(data.labels, minlength=len(benchmark.classes)).tolist()
        found.counts[domain] = dict(zip(benchmark.classes, numbers, strict=True))
        keys[domain] = example_keys(data)
    found.problems += benchmark.known.differences(found.counts) if benchmark.known else []
    found.duplicates = shared_examples(keys)
    return found


def _inspect_files(
    found: Inspection, classes: Mapping[str, ClassFolders], *, names: tuple[str, ...], opening: Opening
) -> None:
    """Count, decode and compare the images of every domain, one domain after the other."""
    keys: dict[str, Keys] = {}
    for domain, folders in classes.items():
        files = _files(folders, names)
        faults = {file.path: fault for file in files if (fault := _fault(file.path))}
        found.broken |= {str(path): fault for path, fault in faults.items()}
        there = [file for file in files if file.path not in faults] if faults else files
        outcome = scan(domain, there, cache_dir=opening.cache_dir, notify=opening.notify) if there else None
        bad = outcome.bad if outcome else {}
        found.broken |= {str(there[position].path): reason for position, reason in bad.items()}
        counts = dict.fromkeys(names, 0)
        for file in files:
            counts[names[file.label]] += 1
        found.counts[domain] = counts
        _judge_classes(found, domain, folders, names)
        keys[domain] = np.array([file_key(file.path) for file in there], dtype=np.uint64)
    found.problems += found.known.differences(found.counts) if found.known else []
    shared = shared_files(keys, lambda domain: _there(classes[domain], names))
    found.duplicates = [[str(path) for path in group] for group in shared]


def _files(folders: ClassFolders, names: tuple[str, ...]) -> list[ImageFile]:
    """List the images of a domain, those that cannot be opened included, named as loading names them."""
    files: list[ImageFile] = []
    for name, several in folders.items():
        for where in several:
            part = f"{where.parent.name}/" if len(several) > 1 else ""
            files += [
                ImageFile(path=path, name=composed(f"{name}/{part}{path.relative_to(where)}"), label=names.index(name))
                for path in images_and_faulty_in(where)
            ]
    return files


def _there(folders: ClassFolders, names: tuple[str, ...]) -> list[Path]:
    return [file.path for file in _files(folders, names) if not _fault(file.path)]


def _fault(path: Path) -> str:
    """Say why a file cannot be opened, or nothing."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            return "not a regular file"
        path.open("rb").close()
    except OSError as error:
        return "a link that leads nowhere" if path.is_symlink() and not path.exists() else str(error.strerror)
    return ""


def _judge_classes(found: Inspection, domain: str, folders: ClassFolders, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in folders]
    empty = [name for name in folders if not found.counts[domain][name]]
    if missing:
        found.problems.append(f"domain {domain!r} lacks {_some(missing)}")
    if empty:
        found.problems.append(f"domain {domain!r}: no image in the folder of {_some(empty)}")
    strange = [
        entry.path
        for several in folders.values()
        for where in several
        for entry in entries(where)
        if is_file(entry) and Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES
    ]
    if strange:
        found.notes.append(f"domain {domain!r}: {len(strange):,} files are no images, the first {strange[0]}: ignored")


def _note_others(found: Inspection, folder: Path, others: list[Path]) -> None:
    if others:
        found.notes.append(f"{folder}: no class of {found.benchmark}, ignored: {_some([path.name for path in others])}")


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
