"""Runs side by side: the bits of runs in turn, whatever happens to a worker; what fails is named and stops nothing."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import toy_worker
from filelock import FileLock

from fedhess.base.errors import UsageError
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs import parallel
from fedhess.jobs.job import slug
from fedhess.jobs.progress import Progress
from fedhess.jobs.running import open_job
from fedhess.jobs.tracking import TRACKERS, About, Tracker
from fedhess.jobs.workers import processes, worker
from fedhess.jobs.workers.processes import LocalWorkers, read_gpus
from fedhess.jobs.workers.worker import Task
from fedhess.settings.run_config import RunConfig
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]
MEASURED = ("seconds", "bytes_down", "sent")  # a model is sent anew after a restart


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recorded(run: Path) -> list[dict[str, object]]:
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]


def assert_same(run: Path, other: Path) -> None:
    mine, theirs = (max((each / "checkpoint").glob("round-*.safetensors")) for each in (run, other))
    assert mine.read_bytes() == theirs.read_bytes()
    assert recorded(run) == recorded(other)


class Seen(Tracker):
    """A tracker that notes what it is given, and how far the run was then."""

    events: ClassVar[list[tuple[str, object, int]]] = []

    def __init__(self, about: About) -> None:
        self.run_id = about.name
        self._directory = RunDirectory(about.folder.parents[1] / slug(about.name.partition("/")[0]) / "east/0")

    def _note(self, what: object) -> None:
        self.events.append((self.run_id, what, self._directory.completed_round() or 0))

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        self._note(server_round)

    def close(self, *, failed: bool) -> None:
        self._note("failed" if failed else "ended")


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let real workers know the toy benchmark and what ends them; note what a tracker is given."""
    toy_worker.use(monkeypatch)
    monkeypatch.setattr(parallel, "LIVES", 2)
    monkeypatch.setenv("DEADLY", str(tmp_path))
    monkeypatch.setitem(TRACKERS, "toy", Seen)
    Seen.events.clear()


def seen(run: str) -> list[tuple[object, int]]:
    return [(what, at) for each, what, at in Seen.events if each == run]


@pytest.mark.slow
@pytest.mark.usefixtures("deadly")
def test_a_killed_worker_loses_a_round_and_no_bit(command: Command, tmp_path: Path) -> None:
    strategies = [*TOY, "--strategy", "deadly:KilledOnce,hgp"]
    said = command(*strategies, "--out", "job", "--parallel", 2, "--track", "toy")
    assert said.status == 0, said.err
    assert "goes on from the checkpoint" in said.out
    assert [what for what, _ in seen("hgp/east/0")] == [0, 1, 2, 3, "ended"]
    killed_once = seen("deadly:KilledOnce/east/0")
    assert [what for what, _ in killed_once] == [0, 1, 2, 3, "ended"]
    assert killed_once[0][1] < 3, "its first round was seen long before its last"
    (tmp_path / "spare").touch()
    in_turn = command(*strategies, "--out", "in-turn")
    assert in_turn.status == 0, in_turn.err
    for strategy in ("deadly-KilledOnce", "hgp"):
        assert_same(Path("job", strategy, "east/0"), Path("in-turn", strategy, "east/0"))


@pytest.mark.slow
@pytest.mark.usefixtures("deadly")
def test_a_failed_run_stops_no_other_and_is_named(command: Command) -> None:
    strategies = "deadly:Raises,hgp,deadly:KilledAlways"
    said = command(*TOY, "--strategy", strategies, "--out", "job", "--parallel", 2, "--track", "toy")
    assert said.status == 1
    assert "2 of 3 runs failed:" in said.err
    raised, killed = (line for line in said.err.splitlines() if line.startswith("  deadly:"))
    assert killed.startswith("  deadly:KilledAlways, target east, seed 0: 2 workers died in it, the last: process ")
    assert killed.endswith("was ended by SIGKILL, as by a kernel that is out of memory")
    assert raised.startswith("  deadly:Raises, target east, seed 0: ")
    assert "ZeroDivisionError: no such penalty" in said.err
    summary = Path("job/summary.md").read_text(encoding="utf-8")
    assert "- deadly:KilledAlways, target east, seed 0: round 0 of 3: 2 workers died" in summary
    assert "- deadly:Raises, target east, seed 0: round 0 of 3: round 1: 0 of 3 source clients" in summary
    results = json.loads(Path("job/summary.json").read_text(encoding="utf-8"))["strategies"]
    cells = {name: of["accuracy"]["east"]["mean"] for name, of in results.items()}
    assert [name for name, value in cells.items() if value is None] == ["deadly:Raises", "deadly:KilledAlways"]
    assert seen("deadly:Raises/east/0")[-1] == ("failed", 0)


def test_cores_are_shared_out_and_a_job_keeps_the_threads_that_it_began_with(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(5)
    assert LocalWorkers(2).threads() == 2
    assert LocalWorkers(9).threads() == 1
    given = {"domains": "Toy", "strategy": "erm", "trials": 1, "rounds": 1, "batch_size": 8}

    def planned(**more: object) -> int:
        job, _ = open_job(given | more, Progress(silent=True))
        return int(job.record["settings"]["threads"])

    assert [planned(), planned(parallel=2), planned(parallel=2, threads=4)] == [0, 2, 4]
    brief = ["--domains", "Toy", "--strategy", "erm", "--trials", 1, "--rounds", 1, "--batch-size", 8]
    assert command(*brief, "--threads", 2, "--out", "job").status == 0
    began = {"out": "job", "resume": True}
    assert [planned(**began), planned(parallel=5, **began)] == [2, 2]
    refused = command("--out", "job", "--resume", "--parallel", 2, "--threads", 1)
    assert refused.status == 2
    assert "settings.threads: 2 there, 1 now" in refused.err


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    says = "import json, os, sys; reply = {'failure': os.environ.get('CUDA_VISIBLE_DEVICES')}"
    code = f"{says}\nfor line in sys.stdin: print(json.dumps(reply), flush=True)"
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", code])
    task = Task(str(tmp_path), "run", {}, (), 1, os.getcwd(), ())

    def gpus(workers: LocalWorkers, device: str) -> list[str | None]:
        config = RunConfig.checked(
            {"domains": "Toy", "sources": ("a",), "targets": ("b",), "model": "mlp"} | {"device": device}
        )
        pool = workers.open(tmp_path, config)
        try:
            return [pool.run(task).failure for _ in range(workers.count)]
        finally:
            pool.stop()

    assert gpus(LocalWorkers(3, ("0", "2")), "cuda") == ["0", "2", "0"]
    assert gpus(LocalWorkers(4), "cuda") == ["0", "1", "2", "0"], "by default all of them"
    assert gpus(LocalWorkers(1), "cpu") == [None]
    assert gpus(LocalWorkers(2), "cuda:1") == [None, None], "whoever names one means it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert read_gpus("GPU-7, 5") == ["GPU-7", "5"]
    with pytest.raises(UsageError, match=r"--gpus: .* got '0'; there are 5, GPU-7$"):
        read_gpus("0")
    with pytest.raises(UsageError, match="--gpus: the workers use --device cpu"):
        LocalWorkers(2, ("5",)).check_device("cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("deadly")
def test_a_run_that_a_worker_still_has_has_not_failed(command: Command) -> None:
    assert command(*TOY, "--strategy", "erm", "--rounds", "2", "--out", "job", "--quiet").status == 0
    with FileLock("job/east/0/.lock"):
        said = command("--add", "--rounds", "3", "--out", "job", "--parallel", 1, "--quiet")
    assert (said.status, "another worker still runs it" in said.err) == (1, True)
    assert not Path("job/east/0/failure.txt").exists()


def test_a_run_that_a_worker_still_has_is_not_continued_beside_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*TOY, "--strategy", "erm", "--out", "job", "--quiet").status == 0
    (run,) = (file.parent for file in Path("job").rglob("rounds.jsonl"))
    before = (run / "rounds.jsonl").read_bytes()
    monkeypatch.setattr(worker, "LOCK_SECONDS", 0)

    def refused(*options: object) -> None:
        said = command(*options, "--out", "job", "--quiet")
        assert (said.status, "another worker still runs it" in said.err) == (1, True)

    with FileLock(run / ".lock"):
        refused("--resume-from", 2)
        assert (run / "rounds.jsonl").read_bytes() == before
    RunDirectory(run).go_back(2)
    before = (run / "rounds.jsonl").read_bytes()
    with FileLock(run / ".lock"):
        (run / "checkpoint/round-000003.safetensors").touch()  # that worker is about to name it in checkpoint.json
        refused("--resume")
        assert (run / "rounds.jsonl").read_bytes() == before
        assert (run / "checkpoint/round-000003.safetensors").exists()
    assert command("--resume", "--out", "job", "--quiet").status == 0
