"""Trackers: what their files have, that a run continues where it was, and that a broken one stops nothing."""

import importlib.util
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crossing import sampled
from rows import source, target
from tracked import READERS, of_mlflow, of_tensorboard

from fedhess.base.errors import UsageError
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.tracking import STATE, Tracking, metrics_of_round, read_trackers, track_recorded
from tests.conftest import TOY, Outcome, Start

Command = Callable[..., Outcome]
MADE_AGAIN = ("round/seconds", "round/bytes_down", "round/bytes_up")  # of a round made again: those of the first time


@pytest.fixture(autouse=True)
def no_tracker_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # to read it back
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def rows_of(job: Job, number: int = 0) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in job.runs[number].directory.rows():
        found.setdefault(row["round"], []).append(row)
    return found


@pytest.fixture
def job(command: Command, tmp_path: Path) -> Job:
    """A finished job of two runs."""
    assert command(*TOY, "--strategy", "erm,hgp", "--out", "job", "--quiet").status == 0
    return open_recorded(tmp_path / "job")


def with_trackers(job: Job, *names: str) -> Job:
    return Job(**{**vars(job), "trackers": names})


# -- What is written, by the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_tracker_has_each_round_of_an_interrupted_job_once(start: Start, tmp_path: Path) -> None:
    given = [*TOY, "--rounds", "20", "--checkpoint-every", "7", "--strategy", "hgp", "--out", "job", "--json"]
    given += ["--track", ",".join(READERS)]
    process, state = start(given), tmp_path / "job/east/0/tracking.json"

    def reached() -> int:  # it is opened after the others
        return int(json.loads(state.read_text()).get("wandb", {}).get("round", -1)) if state.exists() else -1

    while process.poll() is None and reached() <= 9:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=250)
    assert process.returncode == 130, "some rounds are after the checkpoint, and are made again"
    out, err = (process := start([*given, "--resume"])).communicate(timeout=250)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["targets"] == ["east"], "stdout is JSON and nothing else"
    recorded = open_recorded(tmp_path / "job")
    assert not list(tmp_path.glob("wandb")) + list(tmp_path.glob("mlruns"))
    for name, read in READERS.items():
        runs = read(tmp_path / "job/tracking" / name)
        assert runs.keys() == {"hgp/east/0"}, name
        run = runs["hgp/east/0"]
        assert run.group == "job", name
        assert [step for step, _ in run.points] == list(range(21)), name
        for step, rows in rows_of(recorded).items():
            expected = metrics_of_round(rows, classes=4)
            found = {key: run.points[step][1][key] for key in expected}
            for key in MADE_AGAIN:
                found.pop(key), expected.pop(key)
            assert found == pytest.approx(expected, rel=1e-6), f"{name}: event files have float32"
        settings = {key: str(value) for key, value in run.settings.items()}
        assert settings["strategy"] == "hgp"
        assert float(settings["strategy_args.alpha"]) == 0.1
        assert settings["sources"] == "north, south, west"


@pytest.mark.parametrize("name", sampled(("tensorboard", "mlflow", "wandb"), ("tensorboard",)))
def test_report_feeds_a_finished_job_once(job: Job, name: str) -> None:
    track_recorded(with_trackers(job, name), pytest.fail)
    files = sorted((job.path / "tracking").rglob("*"))
    track_recorded(with_trackers(job, name), pytest.fail)
    assert sorted((job.path / "tracking").rglob("*")) == files, "nothing is opened where nothing is to be added"
    runs = READERS[name](job.path / "tracking" / name)
    assert {run.group for run in runs.values()} == {"job"}
    assert {run: [step for step, _ in of.points] for run, of in runs.items()} == {
        "erm/east/0": [0, 1, 2, 3], "hgp/east/0": [0, 1, 2, 3],
    }  # fmt: skip


def test_rounds_made_again_after_a_kill_are_not_recorded_again(job: Job) -> None:
    tracked, (run, _), rows = with_trackers(job, "tensorboard"), job.runs, rows_of(job)
    lines = run.directory.rounds_file.read_text().splitlines(keepends=True)
    run.directory.rounds_file.write_text("".join(lines[:4]))  # as if killed after round 0, before a checkpoint
    (run.directory.path / "checkpoint" / "checkpoint.json").unlink()
    with Tracking(tracked, pytest.fail).follow(run, lambda *_: None) as on_round:
        on_round(1, rows[1])
        on_round(2, rows[2])
    seen = []
    with Tracking(tracked, pytest.fail).follow(run, lambda number, _: seen.append(number)) as on_round:
        for number in (1, 2, 3):
            on_round(number, rows[number])
    assert seen == [1, 2, 3]
    folder = job.path / "tracking/tensorboard"
    assert [step for step, _ in of_tensorboard(folder)["erm/east/0"].points] == [0, 1, 2, 3]
    (run.directory.path / STATE).unlink()  # as when it goes back to a round
    with Tracking(tracked, pytest.fail).follow(run, lambda *_: None) as on_round:
        on_round(1, [row | {"accuracy": 0.125} for row in rows[1]])
    found = of_tensorboard(folder)["erm/east/0"]
    assert [step for step, _ in found.points] == [0, 1], "nothing is left of the past that was given up"
    assert found.points[1][1]["sources/accuracy"] == 0.125


def test_a_job_that_grows_goes_on_in_the_trackers_and_runs_that_it_had(command: Command) -> None:
    assert command(*TOY, "--strategy", "hgp", "--track", "tensorboard", "--out", "job").status == 0
    assert command("--out", "job", "--add", "--variants", "lr=0.2", "--rounds", "4").status == 0
    found = of_tensorboard(Path("job/tracking/tensorboard"))
    assert {run: [step for step, _ in of.points] for run, of in found.items()} == {
        "hgp/east/0": [0, 1, 2, 3, 4], "hgp/variant-1/east/0": [0, 1, 2, 3, 4],
    }  # fmt: skip
    assert command("--out", "job", "--add", "--rounds", "5", "--track", "").status == 0
    assert len(of_tensorboard(Path("job/tracking/tensorboard"))["hgp/east/0"].points) == 5, "none is fed"


# -- What goes wrong ---------------------------------------------------------------------------------------------------


def test_a_tracker_that_fails_is_named_once_and_filled_later(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    tracking = Tracking(with_trackers(job, "mlflow", "tensorboard"), warnings.append)
    for number, run in enumerate(job.runs):
        with tracking.follow(run, lambda *_: None) as on_round:
            on_round(3, rows_of(job, number)[3])
    (warning,) = warnings
    assert warning.startswith("--track mlflow failed, the job goes on without it: MlflowException: ")
    assert warning.endswith(f"`fedhess report {job.path} --track mlflow` adds what is missing.")
    assert len(of_tensorboard(job.path / "tracking/tensorboard")["hgp/east/0"].points) == 4
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    track_recorded(with_trackers(job, "mlflow"), pytest.fail)
    assert len(of_mlflow(job.path / "tracking/mlflow")["hgp/east/0"].points) == 4


def test_trackers_are_checked_before_anything_is_done(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = command(*TOY, "--out", "job", "--track", "tensorbord")
    assert outcome.status == 2
    assert "--track: unknown tracker 'tensorbord'; did you mean 'tensorboard'? known: " in outcome.err
    assert not Path("job").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--track wandb: wandb is not installed; pip install 'fedhess\[wandb\]'"):
        read_trackers("wandb")
    assert read_trackers("") == ()


# -- Names -------------------------------------------------------------------------------------------------------------


def test_metrics_are_named_by_role_and_domain_and_missing_ones_are_left_out() -> None:
    counts = {"confusion": [[0, 0, 5], [1, 0, 5]], "calibration": [[10, 5, 7.5]]}
    rows = [source(2, "a", 0.5, 2.0) | {"train_loss": 3.0}, source(2, "b", 1.0, math.nan)]
    rows += [target(2, 0.5, split="in") | counts, target(2, 0.25, split="out")]
    assert metrics_of_round(rows, classes=2) == {
        "source/a/loss": 2.0, "source/a/accuracy": 0.5, "source/a/train_loss": 3.0, "source/b/accuracy": 1.0,
        "target/t/loss": 1.0, "target/t/accuracy": 0.5, "target/t/balanced_accuracy": 0.5,
        "target/t/worst_class_accuracy": 0.0, "target/t/calibration_error": 0.25,
        "target-out/t/loss": 1.0, "target-out/t/accuracy": 0.25,
        "sources/accuracy": 0.75, "targets/loss": 1.0, "targets/accuracy": 0.5,
        "round/bytes_down": 0.0, "round/bytes_up": 0.0, "round/failures": 0.0,
    }  # fmt: skip
