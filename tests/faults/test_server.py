"""The server's side fails: its process, the SuperLink, its disk; and two runs share one SuperLink."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedhess.deploy.processes import marked_processes
from tests.faults.conftest import DOMAINS, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROUNDS = "rounds=5"


def server_processes(federation: Federation) -> list[psutil.Process]:
    """List the processes of Flower that run the ServerApp of this federation."""
    ours = marked_processes(federation.running.mark)
    return [process for process in ours if "flwr-serverapp" in " ".join(process.info["cmdline"] or [])]


def test_a_killed_server_process_is_resumed_from_its_checkpoint_with_the_same_bits(started: Federation) -> None:
    started.start_nodes()
    started.start_run("broken", ROUNDS)
    started.wait(lambda: started.completed_round("broken") >= 2, "round 2 of the run", 300)
    for process in server_processes(started):
        process.kill()
    started.finish("broken", 300)
    done = started.completed_round("broken")
    assert 2 <= done < 5
    started.start_run("broken-again", ROUNDS, f'run-dir="{started.folder / "broken"}"')
    log = started.finish("broken-again", 400)
    assert started.completed_round("broken") == 5
    assert "fedhess: round 0" not in log, "what was done is not done again"
    started.simulate("straight", rounds=5)
    assert started.weights("broken") == started.weights("straight")


def test_a_superlink_that_is_killed_comes_back_with_its_nodes_and_runs_can_be_resumed(started: Federation) -> None:
    started.start_nodes()
    started.start_run("job", ROUNDS)
    started.wait(lambda: started.completed_round("job") >= 2, "round 2 of the run", 300)
    started.kill("superlink")
    started.wait(lambda: not server_processes(started), "the server process ends with the SuperLink", 180)
    done = started.completed_round("job")
    assert done >= 2, "no completed round is lost"
    started.start_superlink("superlink-again")
    started.start_run("job-again", ROUNDS, f'run-dir="{started.folder / "job"}"')
    started.finish("job-again", 500)
    assert started.completed_round("job") == 5
    assert all(name not in started.running.ended() for name in DOMAINS), "the nodes have waited and gone on"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_with_the_reason_and_the_last_checkpoint_is_whole(
    started: Federation, small_disk: Path
) -> None:
    started.start_nodes()
    started.start_run("job", ROUNDS, f'run-dir="{small_disk}/job"')  # one checkpoint fits, a second beside it does not
    log = started.finish("job", 300)
    assert re.search(r"cannot write to .*small.job.*: No space left on device; free space or fix the permissions", log)
    assert list((small_disk / "job").rglob("round-000000.safetensors"))


def test_two_runs_at_once_on_one_superlink_end_with_the_bits_of_one_alone(started: Federation) -> None:
    started.start_nodes()
    for name in ("one", "two"):
        started.start_run(name, "rounds=2")
    for name in ("one", "two"):
        started.finish(name, 500)
        assert started.completed_round(name) == 2
    assert started.weights("one") == started.weights("two")
    clash = [started.start_run(f"clash-{n}", "rounds=3", f'run-dir="{started.folder / "shared"}"') for n in (1, 2)]
    logs = [started.finish(f"clash-{n}", 500) for n in (1, 2)]
    assert sum("another process runs the job in" in log for log in logs) == 1
    assert started.completed_round("shared") == 3
    assert len(clash) == 2
