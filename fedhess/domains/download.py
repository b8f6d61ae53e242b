"""Download a file, checked before it gets its name, and find out within seconds whether there is a network."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from fedhess.domains.domain import Notify

DECISION_SECONDS = 6.0
REQUEST_SECONDS = 4.0  # for one server
STALLED_SECONDS = 30.0  # without a byte


class DownloadError(OSError):
    """A file could not be fetched, or is not what it should be; the message names it and the reason."""


def download(url: str, path: Path, *, checksum: str, notify: Notify) -> None:
    """Download a file; it appears whole and checked, or not at all."""
    if reason := why_no_answer([url]):
        raise DownloadError(reason)
    notify(f"downloading {url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with urlopen(url, timeout=STALLED_SECONDS) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        if not has_checksum(part, checksum):
            raise DownloadError(f"expected {checksum}, got another content")
        os.replace(part, path)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def has_checksum(path: Path, checksum: str) -> bool:
    """Return whether a file has the checksum ``"sha256:..."`` or ``"md5:..."``."""
    kind, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest() == expected


def why_no_answer(urls: Sequence[str]) -> str:
    """Send a HEAD request to each URL in turn; return why none answers, or an empty string."""
    return decide(lambda: _request(urls))


def decide(request: Callable[[], str]) -> str:
    """Return what ``request`` returns, waiting at most ``DECISION_SECONDS``; ``request`` must not raise.

    Name resolution may hang for longer than a request's timeout, so the request runs in a thread that can be left.
    """
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(request()), daemon=True)
    thread.start()
    thread.join(DECISION_SECONDS)
    return answers[0] if answers else f"no answer within {DECISION_SECONDS:g} s"


def _request(urls: Sequence[str]) -> str:
    reasons = []
    for url in urls:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=REQUEST_SECONDS):
                return ""
        except (OSError, ValueError) as error:
            reasons.append(f"{url} cannot be reached: {error}")
    return "; ".join(reasons)
