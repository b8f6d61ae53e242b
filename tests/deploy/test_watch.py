"""The small process that a node is started from, in the place of the command."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from fedhess.deploy import watch
from fedhess.deploy.processes import free_port
from fedhess.deploy.programs import Program

# The command: torch is imported, and then it hands over to a program whose code and patience it is given.
COMMAND = """
import sys, torch
from pathlib import Path
from fedhess.deploy.processes import free_port
from fedhess.deploy.programs import Program
from fedhess.deploy import watch
program = Program(Path(sys.executable).name, ["-c", sys.argv[1]], {"OWN": "yes"})
watch.hand_over([("node", program)], folder=Path("state"), patience=float(sys.argv[2]))
"""
REFUSED_ONCE = """
import os, psutil, sys
from pathlib import Path
there = Path("there")
print(os.environ["OWN"], Path.cwd().name, "megabytes", psutil.Process(os.getppid()).memory_info().rss >> 20)
if not there.exists():
    there.touch()
    sys.exit(7)
"""


def begin(folder: Path, code: str, patience: float) -> "subprocess.Popen[str]":
    (folder / "state").mkdir()
    command = [sys.executable, "-c", COMMAND, code, str(patience)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_node_is_started_again_and_its_lines_have_the_time_and_torch_is_gone(tmp_path: Path) -> None:
    process = begin(tmp_path, REFUSED_ONCE, 60)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    lines = re.findall(r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} yes state megabytes (\d+)$", said)
    assert len(lines) == 2, said
    assert "fedhess: node ended with status 7; once more in 5 s" in said
    assert max(map(int, lines)) < 50, "this process, with torch, has some 500"


def test_what_was_handed_over_ends_with_the_process(tmp_path: Path) -> None:
    process = begin(tmp_path, "import time; print('up', flush=True); time.sleep(600)", 0)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" up\n")
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_a_program_prints_is_shown_on_loopback_unless_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "METRICS_SECONDS", 0.1)
    fails, port = tmp_path / "fails", free_port()
    code = "import pathlib, sys; print('up 1', flush=True); sys.exit(pathlib.Path(sys.argv[1]).exists())"
    fails.touch()
    server = watch.show_metrics(Program(sys.executable, ["-c", code, str(fails)]), port, mark="none")

    def get(path: str = "/metrics") -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}{path}")

    def await_status(status: int) -> None:
        end = time.monotonic() + 60
        while get().status_code != status:
            assert time.monotonic() < end

    await_status(503)
    fails.unlink()
    await_status(200)
    assert (get().text, get().headers["content-type"]) == ("up 1\n", "text/plain; version=0.0.4; charset=utf-8")
    assert {get(path).status_code for path in ("/", "/metrics/..", "/etc/passwd")} == {404}
    own = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert [c.laddr.ip for c in own] == ["127.0.0.1"]
    fails.touch()
    await_status(503)
    server.shutdown()
    server.server_close()
