"""The command of a worker that knows the toy benchmark."""

import sys

import pytest

from fedhess.jobs.workers import processes

CODE = (
    "from fedhess.domains import BENCHMARKS; BENCHMARKS['Toy'] = 'toy:open_toy'; "
    "from fedhess.jobs.workers.worker import main; main()"
)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the workers of this process know the toy benchmark, and strategies of the tests; one thread each."""
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", CODE])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
