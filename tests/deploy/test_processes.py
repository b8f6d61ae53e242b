"""Processes end together, with those that they started, and ports are free before anything is started."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedhess.base.errors import UsageError
from fedhess.deploy.processes import free_port, marked_processes, processes, require_free
from fedhess.deploy.programs import Program

ON_LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
SLEEPER = "import time; time.sleep(600)"
# Starts a process in a session of its own, as the SuperLink does, and ignores the request to end.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


def python(code: str) -> Program:
    return Program(Path(sys.executable).name, ["-c", code])


@ON_LINUX
def test_nothing_is_left_of_a_process_that_does_not_listen_and_of_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhess.deploy.processes.TERM_SECONDS", 0.5)
    with processes(tmp_path) as running:
        running.start("stubborn", python(STUBBORN))
        while "started" not in running.log("stubborn").read_text(encoding="utf-8"):
            time.sleep(0.02)
        mark = running.mark
        assert len(marked_processes(mark)) == 2
    assert marked_processes(mark) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_and_the_processes(number: signal.Signals, tmp_path: Path) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    started: list[subprocess.Popen[bytes]] = []

    def wait_for_the_signal() -> None:
        with processes(tmp_path) as running:
            started.append(running.start("sleeper", python(SLEEPER)))
            os.kill(os.getpid(), number)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        wait_for_the_signal()
    (process,) = started
    assert process.poll() is not None
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_the_end_of_a_log_and_the_status_of_a_process_can_be_had(tmp_path: Path) -> None:
    with processes(tmp_path) as running:
        code = "for number in range(40): print('line', number)\nraise SystemExit(3)"
        running.start("talker", python(code)).wait()
        assert running.ended() == {"talker": 3}
        assert running.tail("talker").splitlines()[-1] == "  line 39"
        assert len(running.tail("talker").splitlines()) == 16


def test_a_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port: cannot listen on 127.0.0.1:{port}: Address already in use"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", free_port())


def test_logs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        processes(tmp_path / "file" / "logs") as running,
        pytest.raises(UsageError, match=r"cannot write to .*file/logs: Not a directory; choose another folder"),
    ):
        running.start("sleeper", python(SLEEPER))
