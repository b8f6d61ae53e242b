import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from fedhess.domains import network


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_file_that_is_there_gives_no_reason(server: str):
    assert network.why_no_answer([f"{server}/absent", f"{server}/there"]) == ""


def test_every_server_without_the_file_is_named(server: str):
    reason = network.why_no_answer([f"{server}/absent", "http://127.0.0.1:1/file"])
    assert "/absent cannot be reached: HTTP Error 404" in reason
    assert "http://127.0.0.1:1/file cannot be reached" in reason


def test_a_silent_server_is_given_up(silent_server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "REQUEST_SECONDS", 0.2)
    assert "timed out" in network.why_no_answer([silent_server])


def test_a_question_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "DECISION_SECONDS", 0.2)
    start = time.monotonic()
    assert network.decide(lambda: time.sleep(5) or "") == "no answer within 0.2 s"
    assert time.monotonic() - start < 2


def test_the_whole_decision_stays_below_ten_seconds():
    assert network.DECISION_SECONDS < 9
