"""Find a benchmark in a local folder: ROOT/DOMAIN/CLASS/images, with the spellings and nestings that occur."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.domains.images.image_files import ImageFile
from fedhess.domains.images.walking import IMAGE_SUFFIXES, images_in, subfolders, walk


@dataclass(frozen=True)
class Layout:
    """How a benchmark lies on disk.

    Attributes:
        benchmark: Its name.
        nestings: Folders below the root where the domains may be; () is the root itself, the last one is advised.
        domains: Domain -> other spellings. Case, spaces and signs never matter.
        classes: Class names; every domain must hold each.
        class_spellings: Class -> other spellings.
        parts: Folders that some releases have between a domain and its classes. Of the alternatives the first whose
            folders are all there is taken, and its folders are read as one.
    """

    benchmark: str
    nestings: tuple[tuple[str, ...], ...]
    domains: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]
    class_spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: tuple[tuple[str, ...], ...] = ()

    def expected(self, root: Path) -> str:
        """Describe what should have been there."""
        shown = [*self.classes[:10], "..."] if len(self.classes) > 10 else self.classes
        where = Path(root, *self.nestings[-1])
        return f"{where}/{{{','.join(self.domains)}}}/{{{','.join(shown)}}}/*.jpg"

    def domain_named(self, text: str) -> str | None:
        """Give a domain's own name for one of its spellings."""
        return _spellings(self.domains).get(_key(text))

    def class_named(self, text: str) -> str | None:
        """Give a class's own name for one of its spellings."""
        return _spellings({name: self.class_spellings.get(name, ()) for name in self.classes}).get(_key(text))


def survey_domains(root: Path, layout: Layout) -> dict[str, list[Path]]:
    """Find every folder of every domain, at the nesting that has the most domains.

    Args:
        root: Where to look: there and in the layout's nestings.
        layout: What to look for.

    Returns:
        Domain -> folders; empty when nothing of the benchmark is there.

    Raises:
        UsageError: ``root`` is no readable folder, or two places hold equally many domains.
    """
    best: dict[str, list[Path]] = {}
    rivals: dict[Path, Path] = {}
    for nesting in layout.nestings:
        for folder in _descend(root, nesting):
            found = _match(subfolders(folder), layout.domains)
            if not found or len(found) < len(best):
                continue
            rivals = {**(rivals if len(found) == len(best) else {}), folder.resolve(): folder}
            best = found if len(found) > len(best) else best
    if len(rivals) > 1:
        names = " and ".join(str(folder) for folder in rivals.values())
        raise UsageError(f"{layout.benchmark} is there more than once: {names}; give one of them, or keep one")
    return {domain: best[domain] for domain in layout.domains if domain in best}


def find_domains(root: Path, layout: Layout) -> dict[str, Path]:
    """Find the folder of each domain.

    Args:
        root: Where to look: there and in the layout's nestings.
        layout: What to look for.

    Returns:
        Domain -> folder; empty when nothing of the benchmark is there.

    Raises:
        UsageError: ``root`` is no readable folder, some domains are there but not all, or one is there twice.
    """
    best = survey_domains(root, layout)
    missing = [domain for domain in layout.domains if domain not in best]
    if best and missing:
        where = next(iter(best.values()))[0].parent
        raise UsageError(
            f"{layout.benchmark} in {where} is incomplete: domain {', '.join(map(repr, missing))} is missing, "
            f"{', '.join(best)} found; expected {layout.expected(root)}"
        )
    for domain, folders in best.items():
        if len(folders) > 1:
            names = " and ".join(str(folder) for folder in folders)
            raise UsageError(f"domain {domain!r} of {layout.benchmark} is there more than once: {names}; keep one")
    return {domain: folders[0] for domain, folders in best.items()}


def require_domains(root: Path, layout: Layout) -> dict[str, Path]:
    """Find the folder of each domain in a folder that must hold the benchmark.

    Args:
        root: As given by the user.
        layout: What to look for.

    Returns:
        Domain -> folder.

    Raises:
        UsageError: As `find_domains`, and when nothing of the benchmark is there.
    """
    found = find_domains(root, layout)
    if not found:
        entries = sorted(entry.name for entry in root.iterdir())
        listing = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") if entries else "nothing: it is empty"
        raise UsageError(f"no {layout.benchmark} in {root}: expected {layout.expected(root)}, found {listing}")
    return found


def held_domains(root: Path, layout: Layout, held: Sequence[str]) -> dict[str, Path]:
    """Find the folders of some domains, where a machine holds no others: ROOT/DOMAIN/CLASS/, nested as ever.

    Args:
        root: As given by the user; not looked at where nothing is held.
        layout: What to look for.
        held: Names of the domains.

    Returns:
        Domain -> folder.

    Raises:
        UsageError: ``root`` is no readable folder, or a domain is missing.
    """
    folders = {domain: found[0] for domain, found in survey_domains(root, layout).items()} if held else {}
    missing = [domain for domain in held if domain not in folders]
    if missing:
        raise UsageError(
            f"no domain {', '.join(map(repr, missing))} of {layout.benchmark} in {root}, found "
            f"{', '.join(folders) or 'none'}; expected {layout.expected(root)}"
        )
    return {domain: folders[domain] for domain in held}


def class_folders(domain: str, folder: Path, layout: Layout) -> dict[str, list[Path]]:
    """Find the folders of each class of a domain; several where a release keeps parts (train, test) apart.

    Args:
        domain: For messages.
        folder: Of the domain.
        layout: What to look for.

    Returns:
        Class -> folders, in the order of the layout's classes, without the classes that are not there.

    Raises:
        UsageError: A class is there under two spellings, or a folder cannot be read.
    """
    spellings = {name: layout.class_spellings.get(name, ()) for name in layout.classes}
    inside = subfolders(folder)
    bases = [folder]
    if not _match(inside, spellings):
        by_key = {_key(child.name): child for child in inside}
        present = [parts for parts in layout.parts if all(_key(part) in by_key for part in parts)]
        bases = [by_key[_key(part)] for part in present[0]] if present else bases
    found: dict[str, list[Path]] = {}
    for base in bases:
        for name, folders in _match(subfolders(base), spellings).items():
            if len(folders) > 1:
                names = " and ".join(str(path) for path in folders)
                raise UsageError(f"domain {domain!r}, class {name!r} is there more than once: {names}; keep one")
            found.setdefault(name, []).append(folders[0])
    return {name: found[name] for name in layout.classes if name in found}


def require_classes(domain: str, folder: Path, layout: Layout) -> dict[str, list[Path]]:
    """Insist that every class is there and holds an image; stops at the first image, so it is quick.

    Args:
        domain: For messages.
        folder: Of the domain.
        layout: What to look for.

    Returns:
        Class -> folders.

    Raises:
        UsageError: A class is missing, empty or there twice.
    """
    found = class_folders(domain, folder, layout)
    for name in layout.classes:
        if name not in found:
            others = ", ".join(sorted(found)) or "none"
            raise UsageError(
                f"domain {domain!r} lacks class {name!r}: expected a folder {folder / name} with images; "
                f"classes found: {others}; take a complete copy"
            )
        if not any(True for where in found[name] for _ in walk(where)):
            raise UsageError(
                f"domain {domain!r}, class {name!r}: {found[name][0]} holds no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); put the images there or take a complete copy"
            )
    return found


def list_images(domain: str, folder: Path, layout: Layout) -> list[ImageFile]:
    """List the images of one domain, class by class, by name.

    Args:
        domain: For messages.
        folder: Of the domain.
        layout: Its classes; the label is the index.

    Returns:
        The files; nothing is opened.

    Raises:
        UsageError: A class is missing or empty, a link leads nowhere, or something is no regular file.
    """
    found = require_classes(domain, folder, layout)
    files: list[ImageFile] = []
    for label, name in enumerate(layout.classes):
        for where in found[name]:
            part = f"{where.parent.name}/" if len(found[name]) > 1 else ""
            above = len(str(where)) + 1
            for path in images_in(where):
                files.append(ImageFile(path=path, name=f"{name}/{part}{str(path)[above:]}", label=label))
    return files


def _key(name: str) -> str:
    """Reduce a name to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _spellings(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Map the key of every spelling to its name."""
    return {_key(spelling): name for name, others in names.items() for spelling in (name, *others)}


def _match(folders: Sequence[Path], names: Mapping[str, tuple[str, ...]]) -> dict[str, list[Path]]:
    """Find the folders of each name, under any of its spellings."""
    by_key = _spellings(names)
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if name := by_key.get(_key(folder.name)):
            found.setdefault(name, []).append(folder)
    return found


def _descend(root: Path, nesting: tuple[str, ...]) -> list[Path]:
    """Follow folder names below ``root``, whatever their case."""
    folders = [root]
    for name in nesting:
        folders = [child for folder in folders for child in subfolders(folder) if _key(child.name) == _key(name)]
    return folders
