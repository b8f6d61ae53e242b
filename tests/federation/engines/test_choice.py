"""``--engine`` and its options: what they make, and what is said of mistakes."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhess.base.errors import UsageError
from fedhess.federation.engines import choice
from fedhess.federation.engines.choice import Engine
from fedhess.federation.engines.inprocess import run_in_process
from tests.conftest import TOY, Outcome


def test_the_engine_is_named_in_the_header(command: Callable[..., Outcome]) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--engine", "in-process", "--out", "job")
    assert "engine      in-process" in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "rya"], "unknown engine 'rya'; did you mean 'ray'?"),
        (["--gpus-per-client", "0.5"], "--gpus-per-client is for --engine ray"),
        (["--engine", "ray", "--cpus-per-client", "0"], "expected --cpus-per-client of at least 1"),
        (["--engine", "ray", "--gpus-per-client", "1.5"], "a whole number, got 1 and 1.5"),
        (["--engine", "ray"], "Ray is not installed; pip install 'fedhess[ray]', or use --engine in-process\n"),
    ],
)
def test_mistakes_end_with_status_2_before_anything_is_made(
    options: list[str], message: str, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "not installed" in message else name)
    outcome = command(*TOY, *options, "--out", "job")
    assert (outcome.status, message in outcome.err) == (2, True), outcome.err
    assert not Path("job").exists()


def test_clients_get_the_device_that_the_run_wants_or_it_is_said() -> None:
    def device(name: str, gpus: float) -> str:
        return Engine("Ray", print, gpus).device(name)

    assert [device("cpu", 0.0), device("auto", 0.0), device("cpu", 0.25)] == ["cpu"] * 3
    assert [device("auto", 0.25), device("cuda", 0.25)] == ["auto", "cuda"], "a worker resolves it"
    with pytest.raises(UsageError, match="--gpus-per-client: the run's device is cuda and Ray would hide every GPU"):
        device("cuda", 0.0)
    with pytest.raises(UsageError, match="--device cuda:1: Ray chooses the GPU of each client; use --device cuda"):
        device("cuda:1", 0.5)
    with pytest.raises(UsageError, match="--device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        device("gpu", 0.5)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_driver_without_gpu_leaves_the_device_to_rays_workers(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    sent: list[object] = []

    def run(*apps: Any, run_config: dict[str, Any], node_configs: list[dict[str, Any]], **options: object) -> None:
        sent.append(run_config["device"])
        run_in_process(*apps, run_config=run_config, node_configs=[{**node, "device": "cpu"} for node in node_configs])

    monkeypatch.setattr(choice, "run_on_ray", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--engine", "ray", "--gpus-per-client", "0.5", "--device", device, "--precision", "bf16"]
    outcome = command(*TOY, *given, "--strategy", "erm", "--out", "job")
    assert (outcome.status, outcome.err) == (0, "")
    assert sent == [device]
    assert json.loads(Path("job/config.json").read_text(encoding="utf-8"))["settings"]["device"] == device
