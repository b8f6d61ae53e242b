"""Download one file: with progress, resumed where it was cut off, checked before it gets its name."""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from fedhess.domains.domain import Notify

ATTEMPTS = 10  # in all: a server that cuts off and begins anew each time would never be done
PAUSE_SECONDS = 2.0  # before the second attempt; then twice as long, and so on
LONGEST_PAUSE_SECONDS = 30.0
TIMEOUT = httpx.Timeout(30.0)  # for a server that has stopped sending
SECONDS_BETWEEN_REPORTS = 5.0
TRY_AGAIN = {408, 429, 500, 502, 503, 504}  # statuses of a server that may answer later


class DownloadError(OSError):
    """A file could not be fetched, or is not what it should be; the message says which and why."""


def download(
    url: str,
    path: Path,
    *,
    checksum: str,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    notify: Notify,
) -> None:
    """Download a file; nothing is done when it is there.

    What has come so far is kept beside ``path`` in ``NAME.part``: the next attempt, or the next process, asks for the
    rest only.

    Args:
        url: Where it is; redirections are followed.
        path: The file; it appears whole and checked or not at all.
        checksum: ``"sha256:..."`` or ``"md5:..."`` of the whole file.
        size: In bytes, where known.
        headers: Of the request.
        notify: Told the progress every few seconds.

    Raises:
        DownloadError: No answer, an error of the server, or a wrong checksum (what has come is then deleted).
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            _fetch_rest(url, part, size=size, headers=headers or {}, notify=notify)
            break
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in TRY_AGAIN:
                raise DownloadError(f"{url}: HTTP status {error.response.status_code}") from error
            if attempt + 1 == ATTEMPTS:
                kept = f"; {_size(part):,} bytes are kept: the next attempt continues there" if _size(part) else ""
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise DownloadError(f"{url}: {reason}{kept}") from error
            time.sleep(min(PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
    _check(url, part, checksum)
    os.replace(part, path)


def _fetch_rest(url: str, part: Path, *, size: int | None, headers: Mapping[str, str], notify: Notify) -> None:
    """Fetch what ``part`` lacks and append it."""
    start = _size(part)
    if size is not None and start == size:
        return
    if size is not None and start > size:
        part.unlink()
        start = 0
    ranged = {"Range": f"bytes={start}-"} if start else {}
    # As it is stored: a compressed answer could not be continued.
    asked = {**headers, **ranged, "Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=asked, timeout=TIMEOUT, follow_redirects=True) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left; the checksum decides
        answer.raise_for_status()
        continued = answer.status_code == httpx.codes.PARTIAL_CONTENT
        total = size or (int(answer.headers.get("Content-Length", 0)) + (start if continued else 0)) or None
        meter = _Meter(url.rpartition("/")[2], total=total, notify=notify)
        with part.open("ab" if continued else "wb") as file:
            for piece in answer.iter_raw():
                file.write(piece)
                meter.report(file.tell())
    if size is not None and _size(part) < size:
        raise httpx.RemoteProtocolError(f"the answer ended after {_size(part):,} of {size:,} bytes")


class _Meter:
    """Says how far a download is, every few seconds."""

    def __init__(self, name: str, *, total: int | None, notify: Notify) -> None:
        self._name = name
        self._total = total
        self._notify = notify
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def report(self, done: int) -> None:
        """Take note of ``done`` bytes."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._said < SECONDS_BETWEEN_REPORTS:
            return
        self._said = now
        speed = (done - self._first) / (now - self._started)
        of = f" of {self._total / 1e6:,.0f}" if self._total else ""
        left = f", {(self._total - done) / speed:,.0f} s left" if self._total and speed else ""
        self._notify(f"{self._name}: {done / 1e6:,.0f}{of} MB, {speed / 1e6:.1f} MB/s{left}")


def _check(url: str, part: Path, checksum: str) -> None:
    kind, _, expected = checksum.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        part.unlink()
        raise DownloadError(f"{url}: expected {kind} {expected}, got {found}; it is deleted, try again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
