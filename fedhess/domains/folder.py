"""Find a benchmark in a local folder: ROOT/DOMAIN/CLASS/images, with the spellings and nestings that occur."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhess.domains.images import ImageFile
from fedhess.errors import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Layout:
    """How a benchmark lies on disk.

    Attributes:
        benchmark: Its name.
        nestings: Folders below the root where the domains may be; () is the root itself.
        domains: Domain -> other spellings. Case, spaces and signs never matter.
        classes: Class names; every domain must hold each.
    """

    benchmark: str
    nestings: tuple[tuple[str, ...], ...]
    domains: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]

    def expected(self, root: Path) -> str:
        """Describe what should have been there."""
        domains, classes = ",".join(self.domains), ",".join(self.classes)
        return f"{root}/{self.nestings[-1][0] if self.nestings[-1] else ''}/{{{domains}}}/{{{classes}}}/*.jpg"


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
    best: dict[str, list[Path]] = {}
    for nesting in layout.nestings:
        for folder in _descend(root, nesting):
            found = _match(_subfolders(folder), layout.domains)
            if len(found) > len(best):
                best = found
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
    return {domain: best[domain][0] for domain in layout.domains} if best else {}


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
    folders: dict[str, Path] = {}
    for nesting in layout.nestings if held else ():
        for folder in _descend(root, nesting):
            for domain, found in _match(_subfolders(folder), layout.domains).items():
                folders.setdefault(domain, found[0])
    missing = [domain for domain in held if domain not in folders]
    if missing:
        raise UsageError(
            f"no domain {', '.join(map(repr, missing))} of {layout.benchmark} in {root}, found "
            f"{', '.join(folders) or 'none'}; expected {layout.expected(root)}"
        )
    return {domain: folders[domain] for domain in held}


def list_images(domain: str, folder: Path, classes: Sequence[str]) -> list[ImageFile]:
    """List the images of one domain, class by class, by name.

    Args:
        domain: For messages.
        folder: Of the domain.
        classes: Class names; the label is the index.

    Returns:
        The files; nothing is opened.

    Raises:
        UsageError: A class is missing or empty.
    """
    files: list[ImageFile] = []
    found = _match(_subfolders(folder), dict.fromkeys(classes, ()))
    for label, name in enumerate(classes):
        if name not in found:
            others = ", ".join(sorted(found)) or "none"
            raise UsageError(
                f"domain {domain!r} lacks class {name!r}: expected a folder {folder / name} with images; "
                f"classes found: {others}; take a complete copy"
            )
        images = sorted(
            path
            for path in found[name][0].rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not images:
            raise UsageError(
                f"domain {domain!r}, class {name!r}: {found[name][0]} holds no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); put the images there or take a complete copy"
            )
        files += [ImageFile(path=p, name=f"{name}/{p.relative_to(found[name][0])}", label=label) for p in images]
    return files


def _key(name: str) -> str:
    """Reduce a name to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _match(folders: Sequence[Path], names: Mapping[str, tuple[str, ...]]) -> dict[str, list[Path]]:
    """Find the folders of each name, under any of its spellings."""
    by_key = {_key(spelling): name for name, others in names.items() for spelling in (name, *others)}
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if name := by_key.get(_key(folder.name)):
            found.setdefault(name, []).append(folder)
    return found


def _descend(root: Path, nesting: tuple[str, ...]) -> list[Path]:
    """Follow folder names below ``root``, whatever their case."""
    folders = [root]
    for name in nesting:
        folders = [child for folder in folders for child in _subfolders(folder) if _key(child.name) == _key(name)]
    return folders


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise UsageError(f"data folder {folder} cannot be read: {error.strerror}; give an existing folder") from error
