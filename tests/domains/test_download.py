"""Downloads from a server that cuts off, refuses ranges, fails and lies."""

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedhess.domains import download as module
from fedhess.domains.download import DownloadError, download

CONTENT = bytes(range(256)) * 800
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Server:
    """What a server does, and what it was asked."""

    address: str = ""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes of the next answers, then none is cut
    statuses: list[int] = field(default_factory=list)  # of the next answers
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    behaviour = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.asked.append(self.headers.get("Range"))
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if behaviour.ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = start + behaviour.cut_after.pop(0) if behaviour.cut_after else len(CONTENT)
            self.wfile.write(CONTENT[start:end])

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        behaviour.address = f"http://127.0.0.1:{running.server_address[1]}"
        yield behaviour
        running.shutdown()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def run(path: str = "/file", **arguments: object) -> Path:
        target = tmp_path / "folder" / "file.bin"
        given = {"checksum": CHECKSUM, "size": len(CONTENT), "notify": lambda message: None} | arguments
        download(server.address + path, target, **given)
        return target

    return run


def test_a_file_comes_whole_and_is_not_asked_for_again(fetch: Callable[..., Path], server: Server) -> None:
    assert fetch("/moved").read_bytes() == CONTENT
    assert [path.name for path in fetch().parent.iterdir()] == ["file.bin"]
    assert server.asked == [None, None]


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(fetch: Callable[..., Path], server: Server) -> None:
    server.cut_after = [70_000, 40_000]
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-", "bytes=110000-"]


def test_another_process_goes_on_where_the_first_was_killed(
    fetch: Callable[..., Path], server: Server, tmp_path: Path
) -> None:
    part = tmp_path / "folder" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1000])
    assert fetch(size=None).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_complete_or_too_long(
    fetch: Callable[..., Path], server: Server, tmp_path: Path, length: int
) -> None:
    part = tmp_path / "folder" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes((CONTENT + b"12345")[:length])
    assert fetch().read_bytes() == CONTENT
    assert server.asked == ([] if length == len(CONTENT) else [None])


def test_a_complete_part_of_unknown_size_is_checked(fetch: Callable[..., Path], tmp_path: Path) -> None:
    part = tmp_path / "folder" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert fetch(size=None).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(fetch: Callable[..., Path], server: Server) -> None:
    server.ranges, server.cut_after = False, [70_000]
    assert fetch().read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_server_that_is_busy_is_asked_again(fetch: Callable[..., Path], server: Server) -> None:
    server.statuses = [503, 429]
    assert fetch().read_bytes() == CONTENT


def test_a_refusal_is_final(fetch: Callable[..., Path], server: Server) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match="/file: HTTP status 404"):
        fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize(("ranges", "kept"), [(True, 5014), (False, 5018)])
def test_a_server_that_always_cuts_off_is_given_up_and_the_part_kept(
    fetch: Callable[..., Path], server: Server, tmp_path: Path, ranges: bool, kept: int
) -> None:
    server.ranges, server.cut_after = ranges, [5000, *([0, 7, 0, 7] if ranges else range(5010, 5050))]
    server.cut_after += [0] * 20
    with pytest.raises(DownloadError, match=f"{kept:,} bytes are kept: the next attempt continues there"):
        fetch()
    assert len(server.asked) == module.ATTEMPTS
    assert (tmp_path / "folder" / "file.bin.part").read_bytes() == CONTENT[:kept]
    assert not (tmp_path / "folder" / "file.bin").exists()


def test_another_content_is_refused_and_deleted(fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"expected md5 0123, got [0-9a-f]{32}; it is deleted, try again"):
        fetch(checksum="md5:0123")
    assert list((tmp_path / "folder").iterdir()) == []


def test_progress_is_told_with_the_time_left(
    fetch: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_REPORTS", 0.0)
    said: list[str] = []
    fetch(notify=said.append)
    assert said[-1].startswith("file: 0 of 0 MB, ")
    assert said[-1].endswith(" MB/s, 0 s left")
