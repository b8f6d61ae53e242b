"""Child processes with a log each, all ended together: none is left behind, nor any that they started themselves."""

import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fedhess.base.errors import UsageError
from fedhess.deploy.programs import Program

MARK = "FEDHESS_DEPLOYMENT"  # an environment variable that every process of a deployment inherits
TERM_SECONDS = 8.0  # to end by themselves: a SuperNode says goodbye to the SuperLink
GONE_SECONDS = 5.0  # for what Flower's programs started: it watches its parent
TAIL_LINES = 15


class Processes:
    """The processes of one deployment; ``mark`` is in the environment of each and of all that they start."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.mark = uuid.uuid4().hex
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, program: Program, *, show: bool = False) -> "subprocess.Popen[bytes]":
        """Start a program, with the log ``NAME.log`` unless it may ``show`` on standard output.

        Raises:
            UsageError: The log cannot be written.
        """
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            self.log(name).touch()
        except OSError as error:
            raise UsageError(f"cannot write to {self._logs}: {error.strerror}; choose another folder") from error
        environment = program.environment() | {MARK: self.mark}
        with self.log(name).open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
            self._running[name] = subprocess.Popen(
                program.command(),
                stdin=subprocess.DEVNULL,
                stdout=None if show else log,
                stderr=None if show else subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return self._running[name]

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        """Return a process by its name."""
        return self._running[name]

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        return self._logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """Return the last lines of a process's log, indented."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "".join(f"\n  {line}" for line in lines)

    def ended(self) -> dict[str, int]:
        """Return the status of each process that has ended."""
        return {name: code for name, process in self._running.items() if (code := process.poll()) is not None}

    def stop(self) -> None:
        """End every process, the last started first, and wait until none is left of them or of what they started."""
        for process in reversed(self._running.values()):
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + TERM_SECONDS
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _, left = psutil.wait_procs(marked_processes(self.mark), timeout=GONE_SECONDS)
        for process in left:
            process.kill()
        psutil.wait_procs(left)
        self._running.clear()


@contextmanager
def processes(logs: Path) -> Iterator[Processes]:
    """Yield processes that are ended when the block is left; SIGTERM and SIGHUP leave it as Ctrl-C does."""
    running = Processes(logs)
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield running
    finally:
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        try:
            running.stop()
        finally:
            for number, handler in {**before, signal.SIGINT: impatient}.items():
                signal.signal(number, handler)


def marked_processes(mark: str, *, variable: str = MARK) -> list[psutil.Process]:
    """List the processes of this user that inherited an environment variable with that value."""
    return [
        process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get(variable) == mark
    ]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Check that a port can be listened on, before what listens there is started in the background.

    Raises:
        UsageError: It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"--port: cannot listen on {host}:{port}: {error.strerror}; choose another") from error
