"""``--engine`` and its options: what they make, and what is said of mistakes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TOY, Outcome
from toy import toy_config

from fedhess.engines.choice import Engine, choose_engine
from fedhess.errors import UsageError

NOTHING = {"cpus_per_client": None, "gpus_per_client": None, "ray_address": None}


def test_the_engine_is_named_in_the_header(command: Callable[..., Outcome]) -> None:
    outcome = command(*TOY, "--strategy", "erm", "--engine", "in-process", "--out", "job")
    assert "engine      in-process" in outcome.out
    assert choose_engine("in-process", **NOTHING).title == "in-process"


def test_mistakes_end_with_status_2_before_anything_is_made(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = command(*TOY, "--engine", "rya", "--out", "job")
    assert (unknown.status, "unknown engine 'rya'; did you mean 'ray'?" in unknown.err) == (2, True)
    misplaced = command(*TOY, "--gpus-per-client", "0.5", "--out", "job")
    assert (misplaced.status, "--gpus-per-client is for --engine ray" in misplaced.err) == (2, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    missing = command(*TOY, "--engine", "ray", "--out", "job")
    assert missing.status == 2
    assert missing.err == (
        "fedhess: --engine ray: Ray is not installed; pip install 'fedhess[ray]', or use --engine in-process\n"
    )
    assert not Path("job").exists()


def test_clients_get_the_device_that_the_run_wants_or_it_is_said() -> None:
    def check(device: str, gpus: float | None) -> None:
        Engine("Ray", print, gpus).check(toy_config().model_copy(update={"device": device}))

    check("cpu", 0.0)
    check("cuda:1", None)
    check("cuda", 0.25)
    with pytest.raises(UsageError, match="--gpus-per-client: the run's device is cuda and Ray would hide every GPU"):
        check("cuda", 0.0)
    with pytest.raises(UsageError, match="--device cuda:1: Ray chooses the GPU of each client; use --device cuda"):
        check("cuda:1", 0.5)


def test_references_of_the_round_before_are_an_option(command: Callable[..., Outcome]) -> None:
    outcome = command(*TOY, "--strategy", "hgp", "--references", "previous", "--out", "job")
    assert outcome.status == 0, outcome.err
    wrong = command(*TOY, "--references", "older", "--out", "other")
    assert (wrong.status, "--references: expected 'current' or 'previous', got 'older'" in wrong.err) == (2, True)
