"""The distances of head Hessians by round: exact, those that ``diagnose`` finds, and of a target only at the end."""

import json
from pathlib import Path

import head_cases
import oracles
import pytest
import torch
from typer.testing import CliRunner

from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_finished
from fedhess.results.diagnosis import diagnose_job
from fedhess.results.models import LAST
from fedhess.simulations import correlation_shift, hessian_distances
from fedhess.simulations.hessian_distances import curvature, distances, measure
from fedhess.simulations.scenarios.measurement import Configuration

DATA = Path(__file__).resolve().parents[2] / ".data"


@pytest.mark.parametrize(("outputs", "bias"), [(3, True), (1, True), (2, False)])
def test_distances_are_those_of_hessians_by_double_backward(outputs: int, bias: bool) -> None:
    heads = [head_cases.make_head(7, 4, outputs, bias, seed=seed) for seed in (1, 2)]
    difference = (oracles.dense_hessian(heads[0]) - oracles.dense_hessian(heads[1])).detach()
    gradients, hgps = ([compute(head).detach() for head in heads] for compute in (oracles.gradient, oracles.hgp))
    with torch.no_grad():
        found = distances(*(curvature(head.batch) for head in heads))
    assert found == {
        "gradient": pytest.approx(float((gradients[0] - gradients[1]).norm()), rel=1e-10),
        "frobenius": pytest.approx(float(difference.norm()), rel=1e-10),
        "spectral": pytest.approx(float(torch.linalg.matrix_norm(difference, 2)), rel=1e-10),
        "hgp": pytest.approx(float((hgps[0] - hgps[1]).norm()), rel=1e-10),
        "diagonal": pytest.approx(float(difference.diagonal().norm()), rel=1e-10),
    }


def test_command_follows_the_distances_that_diagnose_finds_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (DATA / "MNIST" / "raw").exists():
        pytest.skip("the MNIST files are not in place: python tools/fetch_mnist.py .data")
    monkeypatch.setenv("FEDHESS_DATA", str(DATA))
    monkeypatch.setattr(correlation_shift, "QUICK_ROUNDS", 4)
    monkeypatch.setattr(hessian_distances, "QUICK_EVERY", 2)
    monkeypatch.chdir(tmp_path)
    few = ["--quick", "--per-domain", "60", "--seeds", "0", "--strategy", "erm,hgp", "--runs", "kept"]
    done = CliRunner().invoke(hessian_distances.cli, few)
    assert done.exit_code == 0, (done.output, done.exception)
    written = Path("runs/quick/hessian_distances.json")
    erm, hgp = json.loads(written.read_text(encoding="utf-8"))["rows"]
    assert [point["round"] for point in hgp["course"]] == [0, 2, 4]
    assert hgp["course"][0] == erm["course"][0], "both begin with the same weights"
    assert hgp["course"][2] != erm["course"][2]
    (folder,) = (each for each in Path("kept").iterdir() if "-hgp-" in each.name)
    job = open_finished(folder)
    last = [row for row in job.runs[0].directory.rows() if row["round"] == 4 and row["role"] == "target"]
    assert hgp["accuracy"]["flip-0.9"] == pytest.approx(100 * last[0]["accuracy"])
    (run,) = diagnose_job(job, most_examples=999, notify=lambda _: None, which=LAST)["runs"]
    (pair,) = (each["values"] for each in run["pairs"] if each["pair"] == "source-source")
    names = {"gradient": "gradient", "spectral": "hessian_spectral", "hgp": "hgp", "diagonal": "hessian_diagonal"}
    for name, of_diagnose in names.items():
        assert hgp["course"][2]["distances"]["sources"][name] == pytest.approx(pair[of_diagnose], rel=1e-6)
    table = written.with_suffix(".md").read_text(encoding="utf-8")
    assert table.strip() in done.output
    assert "Distances between two sources:" in table
    assert "Distances between target and the mean of the sources:" in table
    assert written.with_suffix(".png").stat().st_size > 0


def test_a_kill_costs_no_model_and_one_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    settings = {"model": "mlp", "rounds": 2, "local_steps": 1, "batch_size": 8, "evaluate_every": 1}
    job = Configuration("Toy", "erm", 0, overrides=settings, target="east")
    monkeypatch.setattr(hessian_distances, "measure_round", lambda _, number, __: {"round": number, "accuracy": {}})

    def update(_: Progress, __: int, done: int, ___: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(Progress, "update", update)
        with pytest.raises(KeyboardInterrupt):  # the round is settled, and its model not yet kept
            measure(job, folder=tmp_path, device="cpu")
    assert [point["round"] for point in measure(job, folder=tmp_path, device="cpu")["course"]] == [0, 1, 2]
    (missing,) = tmp_path.rglob("models/1.safetensors")
    missing.unlink()
    with pytest.raises(UsageError, match=f"there is no {missing}, the model of an evaluated round; delete "):
        measure(job, folder=tmp_path, device="cpu")
