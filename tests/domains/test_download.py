"""Downloads from a server that moves files, cuts off, fails and lies; and the decision whether there is a network."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhess.domains import download as module
from fedhess.domains.download import DownloadError, decide, download, why_no_answer

CONTENT = bytes(range(256)) * 800
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response({"/absent": 404, "/moved": 302}.get(self.path, 200))
            self.send_header("Location", "/file")
            self.send_header("Content-Length", str(0 if self.path in ("/absent", "/moved") else len(CONTENT)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path not in ("/absent", "/moved"):
                self.wfile.write(CONTENT[: 5000 if self.path == "/cut" else None])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_file_is_downloaded_whole_and_replaces_the_one_before(server: str, tmp_path: Path) -> None:
    path, said = tmp_path / "folder" / "file.bin", []
    for url in (f"{server}/moved", f"{server}/file"):
        download(url, path, checksum=CHECKSUM, notify=said.append)
        assert path.read_bytes() == CONTENT
        path.write_bytes(b"damaged")
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]
    assert said == [f"downloading {server}/moved", f"downloading {server}/file"]


@pytest.mark.parametrize(
    ("path", "checksum", "message"),
    [
        ("/file", "md5:0123", "/file: expected md5:0123, got another content"),
        ("/cut", CHECKSUM, "/cut: "),
        ("/absent", CHECKSUM, "/absent cannot be reached: HTTP Error 404"),
    ],
)
def test_what_is_not_the_file_is_refused_and_leaves_nothing(
    server: str, tmp_path: Path, path: str, checksum: str, message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        download(server + path, tmp_path / "file.bin", checksum=checksum, notify=lambda said: None)
    assert list(tmp_path.iterdir()) == []


def test_one_server_with_the_file_is_enough_and_every_one_without_is_named(server: str) -> None:
    assert why_no_answer([f"{server}/absent", f"{server}/there"]) == ""
    reason = why_no_answer([f"{server}/absent", "http://127.0.0.1:1/file"])
    assert "/absent cannot be reached: HTTP Error 404" in reason
    assert "http://127.0.0.1:1/file cannot be reached" in reason


def test_a_silent_server_is_given_up(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    assert "timed out" in why_no_answer([silent_server])


def test_a_request_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.DECISION_SECONDS < 9
    monkeypatch.setattr(module, "DECISION_SECONDS", 0.2)
    start = time.monotonic()
    assert decide(lambda: time.sleep(5) or "") == "no answer within 0.2 s"
    assert time.monotonic() - start < 2
