"""The parent process of a node or a SuperLink: it starts programs, shows their output, and ends them.

``fedhess.deploy`` replaces itself with this process. The command has imported torch and would hold some 500 MB for as
long as the node runs; this process holds 20 MB.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NoReturn

from fedhess.deploy.database import forget_runs
from fedhess.deploy.processes import MARK, processes
from fedhess.deploy.programs import Program

AGAIN_SECONDS = 5.0
METRICS_SECONDS = 60.0


def hand_over(
    programs: Sequence[tuple[str, Program]],
    *,
    folder: Path | None = None,
    patience: float = 0.0,
    database: Path | None = None,
    metrics: tuple[Program, int] | None = None,
) -> NoReturn:
    """Replace this process with one that runs :func:`watch`."""
    named = [(name, asdict(program)) for name, program in programs]
    paths = {"folder": folder and str(folder), "database": database and str(database)}
    shown = metrics and [asdict(metrics[0]), metrics[1]]
    task = json.dumps({"programs": named, "patience": patience, "metrics": shown} | paths)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "fedhess.deploy.watch", task])


def watch(
    programs: Sequence[tuple[str, Program]],
    *,
    folder: Path | None,
    patience: float,
    database: Path | None = None,
    metrics: tuple[Program, int] | None = None,
) -> int:
    """Run programs until one ends, end the others, and return the status.

    Args:
        programs: Pairs of name and program.
        folder: Their working directory, if not the current one.
        patience: Seconds during which all programs are started again after one fails.
        database: The SuperLink's database; what a run has left in it is deleted when the run has ended.
        metrics: The program that prints the metrics, and the port that serves them: see :func:`show_metrics`.
    """
    end = time.monotonic() + patience
    while True:
        with processes(None, folder) as running:
            for name, program in programs:
                running.start(name, program)
            if metrics is not None:
                show_metrics(*metrics, mark=running.mark)
            forgotten = 0
            while not (ended := running.ended()):
                time.sleep(0.2)
                if database is not None and database.exists():
                    with contextlib.suppress(sqlite3.OperationalError):  # being created, or in use: retried
                        forgotten = forget_runs(database, forgotten)
        status = max(map(abs, ended.values()))
        if status == 0 or time.monotonic() >= end:
            return status
        sys.stderr.write(f"fedhess: {', '.join(ended)} ended with status {status}; once more in {AGAIN_SECONDS:g} s\n")
        time.sleep(AGAIN_SECONDS)


def show_metrics(program: Program, port: int, *, mark: str) -> HTTPServer:
    """Run a program once a minute and serve its output at /metrics on loopback; status 503 if it has failed.

    The program ends with the other processes that have ``mark`` in their environment.
    """
    environment, printed = program.environment() | {MARK: mark}, [b""]

    def collect() -> None:
        while server.fileno() != -1:
            done = subprocess.run(program.command(), env=environment, stdout=subprocess.PIPE, check=False)
            printed[0] = b"" if done.returncode else done.stdout
            time.sleep(METRICS_SECONDS)

    class Page(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds until a stalled request is dropped: they are served one by one

        def do_GET(self) -> None:
            asked = self.path == "/metrics"
            found = printed[0] if asked else b""
            self.send_response(200 if found else 503 if asked else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Page)
    for work in (server.serve_forever, collect):
        threading.Thread(target=work, daemon=True).start()
    return server


def main() -> None:
    """Run the task that :func:`hand_over` passed on."""
    task = json.loads(sys.argv[1])
    programs = [(name, Program(**program)) for name, program in task["programs"]]
    folder = task["folder"] and Path(task["folder"])
    try:
        database = task["database"] and Path(task["database"])
        shown = task["metrics"] and (Program(**task["metrics"][0]), task["metrics"][1])
        patience = task["patience"]
        status = watch(programs, folder=folder, patience=patience, database=database, metrics=shown)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
