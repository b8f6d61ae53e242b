"""What nginx before the SuperLink passes and refuses, seen with a real nginx and a server in the SuperLink's place."""

import http.client
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from fedhess.base.errors import UsageError
from fedhess.deploy.gateway import SYSTEM_FOLDERS, gateway
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.processes import free_port, processes
from tests.deploy.test_processes import ON_LINUX

HOST = "127.0.0.1"
MB = 2**20
NGINX = shutil.which("nginx") or shutil.which("nginx", path=SYSTEM_FOLDERS)
pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx; make programs installs it")


class Behind(BaseHTTPRequestHandler):
    """Answers a POST with the path and the number of bytes that it was sent; a path ending in ``large`` with 20 MB."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        left = count = int(self.headers.get("Content-Length", 0))
        while left and (part := self.rfile.read(min(left, MB))):
            left -= len(part)
        answer = bytes(20 * MB) if self.path.endswith("large") else f"{self.path} {count}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start nginx before a server; yield the port that nodes reach."""
    with nginx(tmp_path_factory.mktemp("gateway")) as public:
        yield public


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    keys = Keys(folder / "keys")
    make_keys(keys, hosts=[HOST], nodes=[], days=1)
    behind = ThreadingHTTPServer((HOST, 0), Behind)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(keys.server, keys.server_key)
    behind.socket = own.wrap_socket(behind.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    public = free_port()
    program = gateway(keys, host=HOST, port=public, control_port=behind.server_port, folder=folder / "own state")
    with processes(folder / "logs") as running:
        running.start("nginx", program)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((HOST, public)) == 0:
                    break
            assert not running.ended(), running.tail("nginx")
            time.sleep(0.05)
        yield public
    behind.shutdown()


def post(port: int, path: str, body: bytes = b"") -> tuple[int, bytes]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(HOST, port, context=context, timeout=30)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_nodes_send_is_passed_in_both_directions(port: int) -> None:
    assert post(port, "/v1/fleet/pull-messages", b"abc") == (200, b"/v1/fleet/pull-messages 3")
    assert post(port, "/v1/fleet/push-object", bytes(20 * MB)) == (200, f"/v1/fleet/push-object {20 * MB}".encode())
    status, body = post(port, "/v1/fleet/large")
    assert (status, len(body)) == (200, 20 * MB)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/health",
        "/",
        "/v1/fleet",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/x/../../control/list-runs",
        "/v1/Fleet/../control/list-runs",
        "//v1//control/list-runs",
    ],
)
def test_everything_else_is_refused(port: int, path: str) -> None:
    assert post(port, path)[0] == 403


@pytest.mark.parametrize("path", ["/v1/control/../fleet/x", "/v1/fleet//x", "/v1/fleet/%2e/x", "/v1/fleet/%78"])
def test_a_path_is_passed_as_it_was_checked(port: int, path: str) -> None:
    assert post(port, path) == (200, b"/v1/fleet/x 0")


def test_a_path_that_would_be_decoded_twice_stays_below_the_nodes_paths(port: int) -> None:
    status, body = post(port, "/v1/fleet/%252e%252e/control/list-runs")
    assert (status, body) == (200, b"/v1/fleet/%252e%252e/control/list-runs 0")


def test_a_body_beyond_the_limit_is_refused(port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(HOST, port, context=context, timeout=30)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("Content-Length", str(65 * MB))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@ON_LINUX
def test_it_may_open_the_files_of_as_many_connections_as_it_takes(port: int) -> None:
    started = (process for process in psutil.process_iter(["name"]) if process.info["name"] == "nginx")
    workers = [process.pid for process in started if process.parent().name() == "nginx"]
    limits = {
        line for pid in workers for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open" in line
    }
    assert [line.split()[3:5] for line in limits] == [["8192", "8192"]]


def test_a_flood_and_a_request_that_stalls_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REQUESTS_PER_SECOND": 1, "BURST": 5, "STALL_SECONDS": 1, "CONNECTIONS": 2}.items():
        monkeypatch.setattr(f"fedhess.deploy.gateway.{name}", value)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with nginx(tmp_path) as public, ExitStack() as idle:
        for _ in range(9):  # which are not counted
            idle.enter_context(socket.create_connection((HOST, public)))
        stalled = http.client.HTTPSConnection(HOST, public, context=context, timeout=30)
        stalled.putrequest("POST", "/v1/fleet/push-object")
        stalled.putheader("Content-Length", "100")
        stalled.endheaders(b"the first part, and no more")
        began = time.monotonic()
        flood, answers = http.client.HTTPSConnection(HOST, public, context=context, timeout=30), []
        for _ in range(60):
            flood.request("POST", "/v1/fleet/pull-messages", b"")
            answers.append(flood.getresponse())
            answers[-1].read()
        assert [answer.status for answer in answers[:5]] == [200] * 5
        assert 503 in {answer.status for answer in answers}, "after which Flower tries again"
        assert post(public, "/")[0] == 403, "nor is what is refused anyway"
        flood.close()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            stalled.getresponse()
        assert time.monotonic() - began < 50, "nginx waits for 60 s unless it is told"
        stalled.close()


def test_a_missing_nginx_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(tmp_path)
    make_keys(keys, hosts=[], nodes=[], days=1)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("fedhess.deploy.gateway.SYSTEM_FOLDERS", "/nowhere")
    with pytest.raises(UsageError, match=r"there is no nginx.*apt-get install nginx-light"):
        gateway(keys, host=HOST, port=8000, control_port=8001, folder=tmp_path / "nginx")
