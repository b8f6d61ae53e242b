"""``python -m fedhess.diagnose`` on real jobs of the toy benchmark, and what it refuses."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fedhess import diagnose
from fedhess.domains import BENCHMARKS
from fedhess.jobs.reopening import open_finished
from fedhess.results.attributes import ATTRIBUTES, compare_domains, measure_domain
from fedhess.results.diagnosis import MIXED_PAIR, SOURCE_PAIR, compare_strategies
from fedhess.results.domain_views import view_domains
from fedhess.results.models import RunModel, find_models
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def diagnosed(command: Command) -> Command:
    return partial(command, of=diagnose)


@pytest.fixture
def job(command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of two strategies and two trials: trained once, copied for each test."""
    trained = tmp_path_factory.getbasetemp() / "job-to-diagnose"
    if not trained.exists():
        done = command(*TOY[:-2], "--trials", 2, "--strategy", "erm,hgp", "--quiet", "--out", trained)
        assert done.status == 0, done.err
    return Path(shutil.copytree(trained, tmp_path / "job"))


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_job_of_several_strategies_is_compared(job: Path, diagnosed: Command) -> None:
    done = diagnosed(job)
    assert done.status == 0, done.err
    assert "Toy: which method aligns which attribute" in done.out
    assert "seeds 0, 1" in done.out
    assert "mean +- standard error over 2 trials" in done.out
    assert "model mlp" in done.out
    assert "source-target pairs" in done.out
    rows = read_csv(job / "diagnosis" / "diagnosis.csv")
    assert len(rows) == 2 * 2 * 6 * len(ATTRIBUTES)  # strategies, seeds, pairs
    assert {row["dataset"] for row in rows} == {"Toy"}
    assert {row["role_b"] for row in rows if row["domain_b"] == "east"} == {"target"}
    assert all("east" not in (row["domain_a"], row["domain_b"]) or row["role_b"] == "target" for row in rows)
    written = {file.name for file in (job / "diagnosis").iterdir()}
    figures = {f"{name}.{ending}" for name in ("erm-east", "hgp-east", "strategies") for ending in ("png", "svg")}
    assert written == {"diagnosis.md", "diagnosis.json", "diagnosis.csv", *figures}
    assert all((job / "diagnosis" / name).stat().st_size > 0 for name in written)


def model_of(job: Path, strategy: str, seed: int, which: str = "selected") -> RunModel:
    models = find_models(open_finished(job), which)
    return next(model for model in models if (model.run.strategy, model.run.config.seed) == (strategy, seed))


def test_values_are_those_of_the_selected_models(job: Path, diagnosed: Command) -> None:
    diagnosed(job / "hgp", "--quiet")
    rows = read_csv(job / "hgp" / "diagnosis" / "diagnosis.csv")
    model = model_of(job, "hgp", 1)
    views = {view.domain: measure_domain(view.batch) for view in view_domains(model, most_examples=2048)}
    for name, value in compare_domains(views["south"], views["east"]).items():
        (row,) = (
            row
            for row in rows
            if (row["strategy"], row["seed"], row["domain_a"], row["domain_b"], row["attribute"])
            == ("hgp", "1", "south", "east", name)
        )
        assert float(row["value"]) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("which", ["selected", "last"])
def test_source_loss_is_the_one_that_training_recorded(which: str, job: Path, diagnosed: Command) -> None:
    found = json.loads(diagnosed(job / "erm", "--json", "--round", which).out)
    model = model_of(job, "erm", 0, which)
    assert found["runs"][0]["round"] == model.server_round
    recorded = {row["domain"]: row for row in model.run.directory.rows() if row["round"] == model.server_round}
    for domain in found["runs"][0]["domains"]:
        assert domain["loss"] == pytest.approx(recorded[domain["domain"]]["loss"], rel=1e-5)
        assert domain["accuracy"] == pytest.approx(recorded[domain["domain"]]["accuracy"])
        assert domain["role"] == recorded[domain["domain"]]["role"]


def test_single_run_shows_every_pair_with_the_target_labelled(job: Path, diagnosed: Command) -> None:
    done = diagnosed(job / "hgp" / "east" / "1")
    assert done.status == 0, done.err
    assert "Toy: hgp, target east: domains compared in pairs" in done.out
    assert "| T  | east   | TARGET | all (48)" in done.out
    assert "held-out (12)" in done.out
    assert "S1-S2" in done.out
    assert "S3-T" in done.out
    assert "Hessian spectral norm" in done.out
    assert (job / "hgp" / "east" / "1" / "diagnosis" / "hgp-east.png").exists()


def test_at_most_the_given_number_of_examples_is_read(job: Path, diagnosed: Command) -> None:
    done = diagnosed(job / "hgp", "--examples", 10)
    assert "at most 10 examples" in done.out
    assert "all (10 of 48, drawn)" in done.out
    first = find_models(open_finished(job))[0]
    drawn = [view.batch.features for view in view_domains(first, most_examples=10) for _ in range(2)]
    assert drawn[0].shape[0] == 10
    assert torch.equal(drawn[0], drawn[1])


def test_diagnosed_job_is_unchanged_and_resumes(job: Path, diagnosed: Command, command: Command) -> None:
    def contents() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in job.rglob("*") if file.is_file() and "diagnosis" not in str(file)}

    rounds = job / "erm" / "east" / "0" / "rounds.jsonl"
    whole = rounds.read_text(encoding="utf-8")
    rounds.write_text(whole + whole.splitlines(keepends=True)[-1], encoding="utf-8")  # more than the checkpoint counts
    before = contents()
    assert diagnosed(job / "erm").status == 0
    assert contents() == before
    again = command(*TOY[:-2], "--trials", 2, "--strategy", "erm,hgp", "--quiet", "--resume", "--out", job)
    assert again.status == 0, again.err


def test_relative_to_erm_is_a_ratio_of_distances_and_a_difference_of_similarities() -> None:
    def run(strategy: str, seed: int, value: float) -> dict[str, object]:
        values = dict.fromkeys(ATTRIBUTES, value)
        return {"strategy": strategy, "seed": seed, "pairs": [{"pair": SOURCE_PAIR, "values": values}]}

    found = compare_strategies([run("erm", 0, 1.0), run("erm", 1, 3.0), run("coral", 0, 1.0), run("coral", 1, 1.0)])
    assert found["erm"]["hgp"][SOURCE_PAIR] == {"mean": 2.0, "standard_error": 1.0, "relative_to_erm": 1.0}
    assert found["coral"]["hgp"][SOURCE_PAIR]["relative_to_erm"] == 0.5
    assert found["coral"]["gradient_cosine"][SOURCE_PAIR]["relative_to_erm"] == -1.0
    assert found["coral"]["hgp"][MIXED_PAIR] == {"mean": None, "standard_error": None, "relative_to_erm": None}


def test_stand_in_is_named_everywhere(job: Path, diagnosed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy_stand_in:open_stand_in")
    module = type(sys)("toy_stand_in")
    source = (
        "from dataclasses import replace\nfrom toy import open_toy\n"
        "def open_stand_in(opening):\n    return replace(open_toy(opening), stand_in_for='Real')\n"
    )
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "toy_stand_in", module)
    config = json.loads((job / "config.json").read_text(encoding="utf-8"))
    config["dataset"] |= {"title": "Toy (stand-in for Real)", "stand_in_for": "Real"}
    (job / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = diagnosed(job)
    assert "Toy stands in for Real" in done.out
    assert "Toy (stand-in for Real): which method" in done.out
    assert json.loads((job / "diagnosis" / "diagnosis.json").read_text())["title"] == "Toy (stand-in for Real)"
    (table,) = (job / "diagnosis").glob("*.csv")
    assert {row["dataset"] for row in read_csv(table)} == {"Toy (stand-in for Real)"}


def refused(done: Outcome, message: str) -> bool:
    return done.status == 2 and message in done.err and "Traceback" not in done.err and "written" not in done.out


def test_missing_directory_is_a_usage_error(diagnosed: Command, tmp_path: Path) -> None:
    assert refused(diagnosed(tmp_path / "nowhere"), "there is no directory")
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    assert refused(diagnosed(tmp_path / "a" / "b" / "c" / "d"), "is no job's directory")
    assert refused(diagnosed(tmp_path, "--examples", 1), "--examples: expected at least 2, got 1")
    assert refused(diagnosed(), "Missing argument")


def test_mistakes_with_a_job_are_usage_errors(job: Path, diagnosed: Command) -> None:
    assert refused(diagnosed(job / "figures"), "is no run of the job in")
    assert refused(diagnosed(job, "--data-dir", job), "--data-dir: Toy reads no folder")
    shutil.rmtree(job / "hgp" / "east" / "1" / "checkpoint")
    assert refused(diagnosed(job), "has no checkpoint")
    assert diagnosed(job / "erm", "--quiet").status == 0
    checkpoint = max((job / "erm" / "east" / "0" / "checkpoint").glob("*.safetensors"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert refused(diagnosed(job / "erm" / "east" / "0"), "is damaged")


def test_run_that_is_still_training_is_not_looked_at(job: Path, diagnosed: Command) -> None:
    index = job / "erm" / "east" / "0" / "checkpoint" / "checkpoint.json"
    index.write_text(json.dumps(json.loads(index.read_text(encoding="utf-8")) | {"round": 2}), encoding="utf-8")
    assert refused(diagnosed(job / "erm"), "is at round 2 of 3: its target may not be looked at before training")


def test_damaged_or_other_configuration_is_a_usage_error(job: Path, diagnosed: Command) -> None:
    file = job / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    other_data = config | {"dataset": config["dataset"] | {"digest": "0" * 64}}
    no_strategy = config | {"strategies": {}}
    unknown = config | {"dataset": config["dataset"] | {"name": "Toyy"}}
    for text, message in {
        "{": "is damaged (JSONDecodeError",
        "[]": "is damaged (TypeError",
        json.dumps(no_strategy): "strategies: expected a dict with entries",
        json.dumps(other_data): "was trained on other data: on Toy with digest 000000000000",
        json.dumps(unknown): "cannot be opened as it was trained: unknown benchmark 'Toyy'; did you mean 'Toy'?",
    }.items():
        file.write_text(text, encoding="utf-8")
        assert refused(diagnosed(job), message), text


def test_checkpoint_of_another_model_is_a_usage_error(job: Path, diagnosed: Command) -> None:
    run = next(run for run in open_finished(job).runs if run.strategy == "erm" and run.config.seed == 0)
    checkpoint = run.directory.load_checkpoint()
    assert checkpoint is not None
    checkpoint.tensors["model/head.weight"] = torch.zeros(2, 2)
    run.directory.save_checkpoint(checkpoint)
    done = diagnosed(job / "erm")
    assert refused(done, "its checkpoint does not fit the model 'mlp'")
    assert "differs in: head.weight;" in done.err


def test_unwritable_directory_ends_with_status_one(job: Path, diagnosed: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = diagnosed(job / "erm", "--quiet", "--out", tmp_path / "file" / "below")
    assert done.status == 1
    assert "cannot write to" in done.err


def test_final_model_is_in_evaluation_mode(job: Path) -> None:
    assert not find_models(open_finished(job))[0].load().training
