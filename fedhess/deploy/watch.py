"""The process that a node or a SuperLink is started from: it starts programs, shows what they write, and ends them.

``fedhess.deploy`` replaces itself by it, since the command has torch imported and would hold some 500 MB for as long as
the node runs; this one holds 20.
"""

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from fedhess.deploy.database import forget_runs
from fedhess.deploy.processes import processes
from fedhess.deploy.programs import Program

AGAIN_SECONDS = 5.0


def hand_over(
    programs: Sequence[tuple[str, Program]],
    *,
    folder: Path | None = None,
    patience: float = 0.0,
    database: Path | None = None,
) -> NoReturn:
    """Replace this process by one that runs :func:`watch`."""
    named = [(name, asdict(program)) for name, program in programs]
    paths = {"folder": folder and str(folder), "database": database and str(database)}
    task = json.dumps({"programs": named, "patience": patience} | paths)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "fedhess.deploy.watch", task])


def watch(
    programs: Sequence[tuple[str, Program]], *, folder: Path | None, patience: float, database: Path | None = None
) -> int:
    """Run programs until one ends, and end the others; return the status.

    Args:
        programs: By name.
        folder: Where they are started, if not here.
        patience: Seconds in which they are started again if one fails.
        database: The SuperLink's; what a run has left in it is deleted when the run has ended.
    """
    end = time.monotonic() + patience
    while True:
        with processes(None, folder) as running:
            for name, program in programs:
                running.start(name, program)
            forgotten = 0
            while not (ended := running.ended()):
                time.sleep(0.2)
                if database is not None and database.exists():
                    with contextlib.suppress(sqlite3.OperationalError):  # it is being made, or in use: the next time
                        forgotten = forget_runs(database, forgotten)
        status = max(map(abs, ended.values()))
        if status == 0 or time.monotonic() >= end:
            return status
        sys.stderr.write(f"fedhess: {', '.join(ended)} ended with status {status}; once more in {AGAIN_SECONDS:g} s\n")
        time.sleep(AGAIN_SECONDS)


def main() -> None:
    """Do what :func:`hand_over` was asked."""
    task = json.loads(sys.argv[1])
    programs = [(name, Program(**program)) for name, program in task["programs"]]
    folder = task["folder"] and Path(task["folder"])
    try:
        database = task["database"] and Path(task["database"])
        status = watch(programs, folder=folder, patience=task["patience"], database=database)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
