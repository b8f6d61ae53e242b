"""A finished job's tables among the recorded results: those of the job, with its revision and without its paths."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedhess.base import environment
from fedhess.cli.command import run_command
from fedhess.domains import BENCHMARKS, open_benchmark
from fedhess.jobs.plan import plan_job
from fedhess.simulations import record_job
from tests.conftest import TOY, Outcome

Record = Callable[..., int]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Record:
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["record_job", *map(str, arguments), "--out", str(tmp_path / "results")])
        return run_command(record_job.cli)

    return run


def test_tables_of_a_job_are_kept_with_its_revision_and_without_its_paths(
    record: Record, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    job = tmp_path / "job"
    done = command(*TOY, "--strategy", "erm,hgp", "--trials", 2, "--quiet", "--out", job)
    assert done.status == 0, done.err
    assert record(job, "--name", "toy") == 0
    text = (tmp_path / "results" / "toy.md").read_text(encoding="utf-8")
    assert text.startswith("# toy\n- `fedhess --domains Toy ")
    assert ", revision abc\n" in text
    assert (job / "summary.md").read_text(encoding="utf-8").partition("\n\n")[0] in text
    assert " oracle (looks at the target) |" in text
    written = (tmp_path / "results" / "toy.json").read_text(encoding="utf-8")
    assert list(json.loads(written)["summaries"]) == ["source", "oracle"]
    assert str(tmp_path) not in text + written
    assert record_job.render(json.loads(written)) + "\n" == text


def test_selector_that_the_job_has_no_examples_for_is_left_out(
    record: Record, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    job, options = tmp_path / "job", ["--variants", "lr=0.1; lr=0.2", "--selection", "lodo", "--target", "east"]
    done = command(*TOY, "--domains-args", "free=true", "--strategy", "erm", "--quiet", "--out", job, *options)
    assert done.status == 0, done.err
    assert record(job, "--name", "toy") == 0
    text = (tmp_path / "results" / "toy.md").read_text(encoding="utf-8")
    assert "--variants 'lr=0.1; lr=0.2'" in text
    assert "by source validation: their sources hold no example" in text


def test_what_could_not_be_made_again_is_not_recorded(
    record: Record,
    command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = tmp_path / "job"
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc-dirty")
    assert command(*TOY, "--strategy", "erm", "--quiet", "--out", job).status == 0
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc")
    assert record(job, "--name", "toy") == 2
    assert "a job ran with uncommitted changes" in capsys.readouterr().err
    assert record(job, "--name", "../toy") == 2
    assert "--name: expected letters, digits, - and _, got '../toy'" in capsys.readouterr().err
    assert record(job, "--name", "toy", "--allow-dirty") == 0
    assert "UNCOMMITTED CHANGES" in (tmp_path / "results" / "toy.md").read_text(encoding="utf-8")
    shutil.rmtree(job / "east")
    assert record(job, "--name", "toy", "--allow-dirty") == 2
    assert "got 1 of 1 that are interrupted: give --resume" in capsys.readouterr().err


def test_a_setting_that_diverged_is_recorded_as_that(
    record: Record, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc")
    job = tmp_path / "job"
    assert command(*TOY, "--strategy", "erm", "--variants", "lr=0.1; lr=1e30", "--quiet", "--out", job).status == 0
    assert record(job, "--name", "toy") == 0
    text = (tmp_path / "results" / "toy.md").read_text(encoding="utf-8")
    assert "UNFINISHED: 1 of 2 runs" in text
    assert "erm, target east, seed 0 (lr=1e+30): round 1 of 3: round 2: 3 of 3 source clients sent values" in text


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({"batch_size": 0}, ["cuda", "cpu"]),
        ({"batch_size": 8}, ["cpu", "cpu"]),  # quicker there
        ({"batch_size": 0, "device": "cpu"}, ["cpu", "cpu"]),
    ],
)
def test_device_is_that_of_each_recorded_environment(
    settings: dict[str, object], devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    job = plan_job(
        open_benchmark("Toy"), strategies=["erm"], strategy_args={}, target="all", trials=1, overrides=settings,
        out=Path("unused"),
    )  # fmt: skip
    begun, continued = ({"command": ["simulate"], "environment": {"gpu": gpu}} for gpu in ({"names": ["one"]}, None))
    job = replace(job, record={**job.record, **begun, "additions": [continued]})
    assert [origin["device"] for origin in record_job.describe_origin(job)] == devices
