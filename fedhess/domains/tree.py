"""Folders and images on disk: what counts, in a fixed order, with nothing opened."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fedhess.errors import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
LITTER = "__macosx"  # what a Mac's zip leaves beside the data


def images_in(folder: Path) -> list[Path]:
    """List the images in a folder and below, by name; hidden ones do not count.

    Args:
        folder: The folder.

    Returns:
        The files.

    Raises:
        UsageError: A link leads nowhere, or the folder cannot be read.
    """
    files = sorted(walk(folder))
    for path in files:
        if path.is_symlink() and not path.exists():
            raise UsageError(f"{path} is a link to {os.readlink(path)}, which is not there; mend or delete it")
    return files


def walk(folder: Path) -> Iterator[Path]:
    """Give every image in a folder and below, in no order.

    Links to images are followed, also where they lead nowhere; links to folders are not, since they may lead back.
    """
    for entry in entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.is_dir():
            yield Path(entry.path)


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, by name; hidden ones and what a Mac's zip leaves do not count."""
    return sorted(Path(entry.path) for entry in entries(folder) if entry.is_dir())


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
