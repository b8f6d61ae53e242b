"""Folders and images on disk: what counts, in a fixed order, with nothing opened."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fedhess.base.errors import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
LITTER = "__macosx"  # what a Mac's zip leaves beside the data


def images_in(folder: Path) -> list[Path]:
    """List the images in a folder and below, by name; hidden ones do not count.

    Args:
        folder: The folder.

    Returns:
        The files.

    Raises:
        UsageError: A link leads nowhere, something is no regular file, or the folder cannot be read.
    """
    found = _by_name(folder)
    for entry in found:
        if is_file(entry):
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            target = os.readlink(entry.path)
            raise UsageError(f"{entry.path} is a link to {target}, which is not there; mend or delete it")
        raise UsageError(f"{entry.path} is not a regular file (a pipe, a socket or a device); delete it")
    return [Path(entry.path) for entry in found]


def images_and_faulty_in(folder: Path) -> list[Path]:
    """List the images in a folder and below, by name; among them links that lead nowhere and pipes named as images."""
    return [Path(entry.path) for entry in _by_name(folder)]


def _by_name(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(walk(folder), key=lambda entry: entry.path.split(os.sep))


def walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Give every image in a folder and below, in no order.

    Links to images are followed, also where they lead nowhere; links to folders are not, since they may lead back.
    What has an image's name but is no regular file is given too, for the caller to report.
    """
    for entry in entries(folder):
        if is_folder(entry) and not entry.is_symlink():
            yield from walk(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not is_folder(entry):
            yield entry


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, by name; hidden ones and what a Mac's zip leaves do not count."""
    return sorted(Path(entry.path) for entry in entries(folder) if is_folder(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether something is a folder or a link to one; a link that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether something is a regular file or a link to one; a link that leads back to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def composed(name: str) -> str:
    """Give a name with its accents composed: a Mac stores them apart from their letters."""
    return unicodedata.normalize("NFC", name)


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Give what is in a folder, in no order, but for hidden things and litter.

    Args:
        folder: The folder.

    Yields:
        Files and folders.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            yield from (entry for entry in found if not entry.name.startswith(".") and entry.name.lower() != LITTER)
    except OSError as error:
        raise UsageError(f"data folder {folder} cannot be read: {error.strerror}; give an existing folder") from error
