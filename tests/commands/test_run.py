"""``fedhess.run`` and ``fedhess.open``: the command from Python, and the notebook that shows them."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import fedhess
from fedhess.base.errors import UsageError
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]
NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "compare.ipynb"
OPTIONS = {
    "domains": "Toy", "domains_args": {"holdout": 0.25}, "rounds": 3, "local_steps": 1, "batch_size": 8, "lr": 0.1,
    "evaluate_every": 1, "l2": 0, "trials": 1, "server_optimizer": "SGD", "server_lr": 1,
}  # fmt: skip


def recorded(job: str) -> list[dict[str, object]]:
    rows = [json.loads(line) for file in sorted(Path(job).rglob("rounds.jsonl")) for line in file.open()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_run_does_what_the_command_does(command: Command) -> None:
    results = fedhess.run(
        **OPTIONS, strategy=["erm", "hgp"], strategy_args={"hgp.alpha": 0.5}, server_optimizer_args={"momentum": 0.1},
        out="called",
    )  # fmt: skip
    args = ["--strategy-args", "hgp.alpha=0.5", "--server-optimizer-args", "momentum=0.1"]
    outcome = command(*TOY, "--strategy", "erm,hgp", *args, "--out", "commanded")
    assert outcome.status == 0, outcome.err
    assert recorded("called") == recorded("commanded")
    assert results.table in outcome.out
    assert results.summary == json.loads(Path("commanded/summary.json").read_text())


def test_a_job_is_opened_again(command: Command) -> None:
    assert command(*TOY, "--strategy", "erm,hgp", "--out", "job").status == 0
    results = fedhess.open("job")
    rows = results.rows
    last = rows[(rows["round"] == 3) & (rows.strategy == "hgp") & (rows.role == "target")].iloc[0]
    (target,) = results.summary["strategies"]["hgp"]["accuracy"]
    assert (last.scenario, last.domain) == (target, target)
    model = results.model(strategy="hgp")
    weights = results.model(strategy="erm").head.weight
    assert isinstance(model, torch.nn.Module)
    assert not torch.equal(model.head.weight, weights)
    with pytest.raises(UsageError, match="expected strategy, target and seed of one run of job, got several"):
        results.model()


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match=r"there is no option 'round'; did you mean 'rounds'\?"):
        fedhess.run(domains="Toy", round=3)
    with pytest.raises(UsageError, match="--lr: expected more than 0, got -1"):
        fedhess.run(domains="IconPACS", lr=-1)
    with pytest.raises(UsageError, match="no job's directory"):
        fedhess.open("nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        fedhess.fly  # noqa: B018


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"], "it was executed"
            exec("".join(cell["source"]).replace("rounds=20", "rounds=2").replace("trials=2", "trials=1"), names)
    assert set(names["rows"]["strategy"]) == {"erm", "hgp"}  # type: ignore[index]
