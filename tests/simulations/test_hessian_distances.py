"""The distances of head Hessians by round: exact, those that ``diagnose`` finds, and of a target only at the end."""

import json
from pathlib import Path

import head_cases
import oracles
import pytest
import torch
from typer.testing import CliRunner

from fedhess.jobs.reopening import open_finished
from fedhess.results.diagnosis import diagnose_job
from fedhess.results.models import LAST
from fedhess.simulations import correlation_shift, hessian_distances
from fedhess.simulations.hessian_distances import curvature, distances

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
