"""Real processes: SuperLink and SuperNodes with TLS and node authentication."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from image_trees import write_tree

from fedhess.deploy.processes import free_port, marked_processes

Begin = Callable[..., "subprocess.Popen[str]"]
RUN = ["--domains", "IconPACS", "--target", "sketch", "--strategy", "hgp", "--rounds", "2"]
IMPATIENT = Path(__file__).parents[1] / "support" / "impatient"
NODES = ["0-art_painting", "1-cartoon", "2-photo", "3-sketch"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a command of the project as a process of its own, in an empty directory; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(IMPATIENT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def rows(file: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    # A deployed client forgets the model after each message, so it is sent more often.
    return [{key: value for key, value in row.items() if key not in ("seconds", "bytes_down", "sent")} for row in read]


def processes_of(folder: Path) -> list[int]:
    """List the processes whose Flower home is in a folder: every one of a local deployment."""
    return [process.pid for process in marked_processes(str(folder / "flower"), variable="FLWR_HOME")]


@pytest.mark.timeout(300)
def test_a_federation_on_loopback_trains_a_round_and_ends(begin: Begin, tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", ["fog", "rain", "sun"], {"bus": 4, "car": 4})
    data = ["--domains", "folder:photos", "--data-dir", "photos", "--target", "sun", "--strategy", "erm"]
    settings = 'threads=1 device="cpu" local-steps=1 model="mlp" domains-options="side=8" sources="fog"'
    there = begin(["fedhess.deploy", "local", *data, "--rounds", "1", "--run-config", settings, "--out", "there"])
    said, _ = there.communicate(timeout=280)
    assert there.returncode == 0, said
    recorded = rows(tmp_path / "there" / "results" / "sun" / "0" / "rounds.jsonl")
    assert [row["round"] for row in recorded] == [0, 0, 1, 1]
    assert all(row["accuracy"] is not None and not row["failures"] for row in recorded)
    assert "accuracy (%) on the target domain" in said
    assert not processes_of(tmp_path / "there")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployed_run_ends_with_the_bits_of_the_in_process_run(begin: Begin, tmp_path: Path) -> None:
    options = ["--trials", "1", "--threads", "1", "--evaluate-every", "2", "--device", "cpu", "--out", "here"]
    here = begin(["fedhess.simulate", *RUN, *options])
    said, _ = here.communicate(timeout=250)  # it also fills the cache that the nodes read
    assert here.returncode == 0, said
    settings = ["--run-config", 'threads=1 evaluate-every=2 device="cpu"', "--out", "there"]
    there = begin(["fedhess.deploy", "local", *RUN, *settings])
    said, _ = there.communicate(timeout=500)
    assert there.returncode == 0, said

    paths = [tmp_path / "here" / "sketch" / "0", tmp_path / "there" / "results" / "sketch" / "0"]
    weights = [next(path.rglob("checkpoint/round-000002.safetensors")).read_bytes() for path in paths]
    assert weights[0] == weights[1]
    assert rows(paths[0] / "rounds.jsonl") == rows(paths[1] / "rounds.jsonl")

    commands = [line for line in said.splitlines() if line.startswith("$ ")]
    assert [" ".join(line.split()[2:4]) for line in commands].count("flwr supernode") == 4
    assert sum("flower-supernode --root-certificates" in line for line in commands) == 4
    assert sum("--enable-supernode-auth" in line for line in commands) == 1
    assert "fedhess: round 2, sketch (target): accuracy" in said
    logs = {file.stem: file.read_text(encoding="utf-8") for file in (tmp_path / "there" / "logs").glob("*.log")}
    assert {*NODES, "superlink"} <= logs.keys()
    received = {
        name: {line.split("Receiving: ")[1].split()[0] for line in logs[name].splitlines() if "Receiving: " in line}
        for name in NODES
    }
    assert received["3-sketch"] == {"evaluate.identify", "evaluate"}, "nobody asks a target for anything else"
    assert all(received[name] == {"evaluate.identify", "evaluate", "query.statistics", "train"} for name in NODES[:3])
    assert not processes_of(tmp_path / "there")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ctrl_c_leaves_no_process_behind(begin: Begin, tmp_path: Path) -> None:
    port = free_port()
    command = begin(["fedhess.deploy", "local", *RUN, "--port", str(port), "--out", "job"])
    log = tmp_path / "job" / "logs" / "3-sketch.log"
    while not (log.exists() and "Receiving: " in log.read_text(encoding="utf-8")):
        assert command.poll() is None, command.communicate()
        time.sleep(0.2)
    assert len(processes_of(tmp_path / "job")) >= 6, "SuperLink, four SuperNodes, the run"
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=60)
    assert command.returncode == 130, said
    assert "Traceback" not in said
    assert not processes_of(tmp_path / "job")
