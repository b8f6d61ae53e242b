"""Image trees on disk, ROOT/DOMAIN/CLASS/image: how a benchmark's folders are spelled, nested, found and listed."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.domains.images.image_files import ImageFile

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm"),
    *(".tif", ".tiff", ".webp", ".avif", ".jp2"),
}
LITTER = "__macosx"  # a folder that macOS adds to zip files
ClassFolders = Mapping[str, Sequence[Path]]  # class -> folders; several where a release keeps train and test apart
Tree = Mapping[str, ClassFolders]  # domain -> its classes


@dataclass(frozen=True)
class Layout:
    """How a benchmark lies on disk."""

    benchmark: str
    # Folders below the root that may hold the domains; () is the root itself. Messages advise the last one
    nestings: tuple[tuple[str, ...], ...]
    domains: Mapping[str, tuple[str, ...]]  # domain -> other spellings. Case, spaces and signs never matter
    classes: tuple[str, ...]  # class names; every domain must hold each
    class_spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class -> other spellings
    # Folders that some releases have between a domain and its classes. The first alternative whose folders all
    # exist is used, and its folders are read as one
    parts: tuple[tuple[str, ...], ...] = ()

    def expected(self, root: Path) -> str:
        """Describe the expected folders."""
        shown = [*self.classes[:10], "..."] if len(self.classes) > 10 else self.classes
        return f"{Path(root, *self.nestings[-1])}/{{{','.join(self.domains)}}}/{{{','.join(shown)}}}/*.jpg"

    @cached_property
    def spelled_domains(self) -> dict[str, str]:
        """Spelling -> domain."""
        return _by_spelling(self.domains)

    @cached_property
    def spelled_classes(self) -> dict[str, str]:
        """Spelling -> class."""
        return _by_spelling({name: self.class_spellings.get(name, ()) for name in self.classes})


def find_domains(root: Path, layout: Layout) -> dict[str, Path]:
    """Find the folders of a benchmark's domains; missing domains are left out.

    Of ``root`` and the layout's nestings below it, the first with the most domains is used.

    Raises:
        UsageError: ``root`` is no readable folder, or one place holds a domain under two spellings.
    """
    best: dict[str, Path] = {}
    for nesting in layout.nestings:
        places = [root]
        for name in nesting:
            places = [
                child for place in places for child in subfolders(place) if spelling(child.name) == spelling(name)
            ]
        for place in places:
            found = folders_by_name(place, layout.spelled_domains)
            best = found if len(found) > len(best) else best
    return {domain: best[domain] for domain in layout.domains if domain in best}


def find_classes(folder: Path, layout: Layout) -> dict[str, list[Path]]:
    """Find the folders of each class in a domain's folder, in the layout's order; missing classes are left out."""
    spelled = layout.spelled_classes
    inside = {spelling(child.name): child for child in subfolders(folder)}
    bases = [folder]
    if not spelled.keys() & inside.keys():
        present = [parts for parts in layout.parts if inside.keys() >= set(parts)]
        bases = [inside[part] for part in present[0]] if present else bases
    found = [folders_by_name(base, spelled) for base in bases]
    classes = {name: [each[name] for each in found if name in each] for name in layout.classes}
    return {name: folders for name, folders in classes.items() if folders}


def require_classes(domain: str, folder: Path, layout: Layout) -> dict[str, list[Path]]:
    """Find the folders of each class, all of which must be there and hold an image."""
    found = find_classes(folder, layout)
    for name in layout.classes:
        if name not in found:
            raise UsageError(
                f"domain {domain!r} lacks class {name!r}: expected a folder {folder / name} with images; "
                f"classes found: {', '.join(sorted(found)) or 'none'}; take a complete copy"
            )
        if not any(True for where in found[name] for _ in images_in(where)):
            raise no_image(domain, name, found[name][0])
    return found


def no_image(domain: str, name: str, folder: Path) -> UsageError:
    """Return the error for a class without images."""
    return UsageError(
        f"domain {domain!r}, class {name!r}: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
    )


def list_images(folders: ClassFolders, classes: Sequence[str]) -> list[ImageFile]:
    """List the images of a domain, class by class, by name; a label is an index into ``classes``; opens nothing."""
    files: list[ImageFile] = []
    for label, name in enumerate(classes):
        several = folders.get(name, ())
        for where in several:
            prefix = f"{name}/{where.parent.name}" if len(several) > 1 else name
            above = len(str(where))
            files += [ImageFile(path, composed(prefix + str(path)[above:]), label) for path in images_in(where)]
    return files


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and below, by name; links to folders below are not followed: they may loop."""
    for entry in entries(folder):
        if entry.is_dir():
            if not entry.is_symlink():
                yield from images_in(Path(entry.path))
        elif _is_image(entry.name):
            yield Path(entry.path)


def describe_ignored(domain: str, folders: ClassFolders) -> str:
    """Describe the files in a domain's folders whose names are not those of images, if any."""
    inside = [entry for several in folders.values() for folder in several for entry in entries(folder)]
    others = [each.path for each in inside if each.is_file() and not _is_image(each.name)]
    return f"domain {domain!r}: {len(others):,} files are no images, ignored: {some(others)}" if others else ""


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def some(names: list[str]) -> str:
    """List names, the first five of many."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def folders_by_name(folder: Path, spelled: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Return the folders in a folder by name; with ``spelled``, only those that it knows, by its names for them."""
    found: dict[str, Path] = {}
    for child in subfolders(folder):
        name = composed(child.name) if spelled is None else spelled.get(spelling(child.name))
        if name in found:
            raise UsageError(f"{name!r} is there more than once: {found[name]} and {child}; keep one")
        if name is not None:
            found[name] = child
    return found


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, by name."""
    return [Path(entry.path) for entry in entries(folder) if entry.is_dir()]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List what is in a folder, by name, without hidden entries and litter."""
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() != LITTER]
    except OSError as error:
        raise UsageError(f"data folder {folder} cannot be read: {error.strerror}; give an existing folder") from error
    return sorted(shown, key=lambda entry: entry.name)


def composed(name: str) -> str:
    """Compose the accents of a name: a Mac stores them apart from their letters."""
    return unicodedata.normalize("NFC", name)


def spelling(name: str) -> str:
    """Reduce a name to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _by_spelling(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {spelling(each): name for name, others in names.items() for each in (name, *others)}
