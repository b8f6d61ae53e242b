"""Child processes with a log each; they are ended together, along with the processes that they started."""

import contextlib
import ipaddress
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

import psutil

from fedhess.base.errors import UsageError
from fedhess.deploy.programs import Program, writing_to

MARK = "FEDHESS_DEPLOYMENT"  # an environment variable that every process of a deployment inherits
TERM_SECONDS = 8.0  # to end by themselves after SIGTERM: a SuperNode signs off at the SuperLink
TAIL_LINES = 15


class Processes:
    """The processes of one deployment, by name, started in ``folder``.

    Without a ``logs`` folder their output goes to standard output, each line with the time. ``mark`` is in the
    environment of every process and of all that it starts.
    """

    def __init__(self, logs: Path | None, folder: Path | None = None) -> None:
        self._logs = logs
        self._folder = folder
        self.mark = uuid.uuid4().hex
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._copying: list[threading.Thread] = []

    def start(self, name: str, program: Program, *, show: bool = False) -> "subprocess.Popen[bytes]":
        """Start a program; its output goes to ``NAME.log``, or with ``show`` to standard output."""
        output: int | IO[bytes] = subprocess.PIPE
        if self._logs is not None:
            with writing_to(self._logs):
                self._logs.mkdir(parents=True, exist_ok=True)
                output = self.log(name).open("ab")
        self.running[name] = subprocess.Popen(
            program.command(),
            stdin=subprocess.DEVNULL,
            stdout=None if show else output,
            stderr=None if show else subprocess.STDOUT,
            env=program.environment() | {MARK: self.mark},
            cwd=self._folder,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        )
        if written := self.running[name].stdout:
            self._copying.append(threading.Thread(target=_copy_with_times, args=(written,), daemon=True))
            self._copying[-1].start()
        elif not isinstance(output, int):
            output.close()
        return self.running[name]

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        assert self._logs is not None, "there are no logs"
        return self._logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """Return the last lines of a process's log, indented."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "".join(f"\n  {line}" for line in lines)

    def ended(self) -> dict[str, int]:
        """Return the status of each process that has ended."""
        return {name: code for name, process in self.running.items() if (code := process.poll()) is not None}

    def stop(self) -> None:
        """End every process and all that they started, and wait until none is left."""
        started = self._all()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(started, timeout=TERM_SECONDS)
        left = self._all()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)
        for child in self.running.values():
            child.wait()
        for thread in self._copying:
            thread.join(TERM_SECONDS)
        self.running.clear()

    def _all(self) -> list[psutil.Process]:
        """List the marked processes, and those started here with their children: nginx overwrites its environment."""
        found = marked_processes(self.mark)
        for child in self.running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                found += [process, *process.children(recursive=True)] if child.poll() is None else []
        return list(dict.fromkeys(found))


@contextlib.contextmanager
def processes(logs: Path | None, folder: Path | None = None) -> Iterator[Processes]:
    """Yield processes that are ended when the block is left; SIGTERM and SIGHUP leave it as Ctrl-C does."""
    running = Processes(logs, folder)
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        yield running
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them
        running.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _copy_with_times(lines: IO[bytes]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # the reader is gone: the program must not block
            sys.stdout.buffer.write(f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z} ".encode() + line)
            sys.stdout.buffer.flush()


def marked_processes(mark: str, *, variable: str = MARK) -> list[psutil.Process]:
    """List the processes of this user that inherited an environment variable with that value."""
    return [
        process
        for process in psutil.process_iter(["environ", "cmdline"])
        if (process.info["environ"] or {}).get(variable) == mark
    ]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int, *, option: str = "--port") -> None:
    """Check that a port can be listened on, before a background process is started that listens there."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except ValueError:
        raise UsageError(f"--host: expected an IP address of this machine, or 0.0.0.0 for all, got {host!r}") from None
    except OSError as error:
        raise UsageError(f"{option}: cannot listen on {host}:{port}: {error.strerror}; choose another") from error
