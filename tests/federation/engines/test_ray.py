"""Ray ends with the bits of the in-process engine; a missing extra, an absent cluster and no room are said."""

import functools
import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from ray_toy import ToyClient
from torch import Tensor
from toy import toy_config

from fedhess.base.errors import FederationError, UsageError
from fedhess.deploy.processes import free_port
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.engines.ray import run_on_ray
from fedhess.federation.server.app import Server
from fedhess.federation.server.run_directory import Row
from fedhess.settings.run_config import RunConfig
from tests.conftest import Start

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
HGP = {"strategy": "hgp", "strategy_args": {"alpha": 0.02, "beta": 0.05}, "rounds": 2}
CUSTOM = """
from fedhess.alignment.strategy import DomainStrategy

class Half(DomainStrategy):
    def objective(self, step, reference):
        return 0.5 * step.loss
"""


def run(engine: Callable[..., None], client: Any, config: RunConfig) -> tuple[dict[str, Tensor], list[Row]]:
    """Run the real ServerApp's server on an engine; return final weights and rows."""
    tensors: dict[str, Tensor] = {}
    rows: list[Row] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        read = RunConfig.checked(RunConfig.given_in(context.run_config))
        model = Server(grid, read, on_round=lambda _, found: rows.extend(found)).run()
        tensors.update({name: value.clone() for name, value in model.tensors.items()})

    count = len(config.sources) + len(config.targets)
    nodes = [{"partition-id": index, "num-partitions": count} for index in range(count)]
    engine(server_app, client, run_config=config.to_run_config(), node_configs=nodes)
    return tensors, rows


def assert_equal_bits(config: RunConfig) -> None:
    here, there = run(run_in_process, client_app, config)[0], run(run_on_ray, ToyClient(), config)[0]
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


@needs_ray
@pytest.mark.slow
def test_hgp_ends_with_the_bits_of_the_in_process_engine() -> None:
    assert_equal_bits(toy_config(**HGP, threads=1))


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fishr", "fedsr", "flwr.serverapp.strategy:FedAvgM", "half:Half"])
def test_other_strategies_do_too(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.py").write_text(CUSTOM, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    args = {"anneal_steps": 2} if strategy == "fishr" else {}
    settings = {"rounds": 3, "local_steps": 2, "momentum": 0.9, "threads": 1}
    assert_equal_bits(toy_config(strategy=strategy, strategy_args=args, **settings))
    sys.modules.pop("half", None)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"), [("raise", "OSError: the disk is gone"), ("hang", "no reply within 25 s")]
)
def test_a_failing_client_is_named_as_in_process(fault: str, reason: str) -> None:
    _, rows = run(run_on_ray, ToyClient(fault), toy_config(**HGP, quorum=2, deadline=25.0))
    failures = [failure["reason"] for row in rows for failure in row["failures"]]
    assert len(failures) == 2
    assert all(reason in failure for failure in failures)


@needs_ray
@pytest.mark.slow
def test_below_the_quorum_the_error_of_the_server_comes_out() -> None:
    with pytest.raises(FederationError, match="2 of 3 source clients completed phase 'train'"):
        run(run_on_ray, ToyClient("raise"), toy_config(**HGP))


def await_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(300):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"nobody listens at {address}")


@needs_ray
@pytest.mark.slow
def test_a_running_cluster_is_joined_by_its_address_and_left_running() -> None:
    address = f"127.0.0.1:{free_port()}"
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "false"]
    cluster = subprocess.Popen([sys.executable, "-m", *command, "--port", address.rpartition(":")[2]])
    try:
        await_port(address)
        config = toy_config(**HGP, threads=1)
        here = run(run_in_process, client_app, config)[0]
        for _ in range(2):
            there = run(functools.partial(run_on_ray, address=address), ToyClient(), config)[0]
            assert all(torch.equal(here[name], there[name]) for name in here)
            assert cluster.poll() is None
    finally:
        cluster.terminate()
        cluster.wait(timeout=60)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ctrl_c_ends_a_run_on_ray(start: Start, tmp_path: Path) -> None:
    brief = ["--domains", "IconPACS", "--target", "sketch", "--rounds", "100000", "--trials", "1", "--device", "cpu"]
    process = start([*brief, "--strategy", "erm", "--engine", "ray", "--out", "job"], code=None)
    while not (tmp_path / "job/sketch/0/rounds.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    time.sleep(3)  # into a round: a client is at work, whose reply nobody will wait for
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "completed rounds are kept: continue with --resume --out job" in err
    assert "Traceback" not in err


@needs_ray
def test_an_absent_cluster_is_said_at_once() -> None:
    nodes = {"run_config": {}, "node_configs": [{}]}
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"):
        with pytest.raises(UsageError, match=rf"--ray-address: no Ray cluster answers at {address} \("):
            run_on_ray(ServerApp(), client_app, address=address, **nodes)


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room_is_said() -> None:
    with pytest.raises(UsageError, match="no machine of the Ray cluster has room for a client of 1000 CPUs"):
        run_on_ray(ServerApp(), client_app, cpus_per_client=1000, run_config={}, node_configs=[{}])
