"""Ctrl-C and kills of the command: no worker is left, and the job is resumed to the same bits."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import TOY, Start
from tests.jobs.workers.test_processes import assert_same

Begin = Callable[..., "subprocess.Popen[str]"]
JOB = [*TOY, "--rounds", "80", "--strategy", "erm,hgp", "--quiet"]
COMMAND = (
    "import sys; from fedhess.domains import BENCHMARKS; BENCHMARKS['Toy'] = 'toy:open_toy'; "
    "from fedhess.jobs.workers import processes; import toy_worker; "
    "processes.COMMAND = [sys.executable, '-c', toy_worker.CODE]; from fedhess.simulate import main; main()"
)


@pytest.fixture
def begin(start: Start) -> Begin:
    return lambda *arguments: start(arguments, code=COMMAND)


def in_the_middle(process: "subprocess.Popen[str]", job: Path) -> list[psutil.Process]:
    """Wait until both runs have begun, and return the workers."""
    files = [job / strategy / "east/0/rounds.jsonl" for strategy in ("erm", "hgp")]
    while not all(file.exists() and file.stat().st_size > 20_000 for file in files):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    return workers


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_command_and_every_run_is_resumed(begin: Begin, tmp_path: Path, blow: int) -> None:
    job, undisturbed = tmp_path / "job", tmp_path / "undisturbed"
    command = begin(*JOB, "--out", job, "--parallel", "2")
    workers = in_the_middle(command, job)
    command.send_signal(blow)
    _, said = command.communicate(timeout=10)
    assert not psutil.wait_procs(workers, timeout=5)[1]
    if blow == signal.SIGINT:
        assert command.returncode == 130
        assert "continue with --resume --out" in said
        assert "Traceback" not in said
    assert begin("--resume", "--out", job, "--parallel", "2", "--quiet").wait(timeout=200) == 0
    assert begin(*JOB, "--out", undisturbed, "--threads", "1").wait(timeout=200) == 0
    for strategy in ("erm", "hgp"):
        assert_same(job / strategy / "east/0", undisturbed / strategy / "east/0")


@pytest.mark.slow
def test_a_worker_killed_from_outside_is_replaced(begin: Begin, tmp_path: Path) -> None:
    job, undisturbed = tmp_path / "job", tmp_path / "undisturbed"
    command = begin(*JOB, "--out", job, "--parallel", "2")
    for worker in in_the_middle(command, job):
        worker.kill()
    assert command.wait(timeout=200) == 0
    assert begin(*JOB, "--out", undisturbed, "--threads", "1").wait(timeout=200) == 0
    for strategy in ("erm", "hgp"):
        assert_same(job / strategy / "east/0", undisturbed / strategy / "east/0")
