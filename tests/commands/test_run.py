"""``fedhess.run`` and ``fedhess.open``: the command from Python, and the notebook that shows them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import fedhess
from fedhess.cli.options import read_options
from fedhess.federation.client import memory
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
    with pytest.raises(fedhess.UsageError, match="expected strategy, target and seed of one run of job, got several"):
        results.model()


def test_mistakes_are_named() -> None:
    with pytest.raises(fedhess.UsageError, match=r"there is no option 'round'; did you mean 'rounds'\?"):
        fedhess.run(domains="Toy", round=3)
    with pytest.raises(fedhess.UsageError, match="--lr: expected more than 0, got -1"):
        fedhess.run(domains="IconPACS", lr=-1)
    with pytest.raises(
        fedhess.UsageError, match=r"strategy: expected text, got <class .*; .* by its name, 'package.module:Name'"
    ):
        fedhess.run(domains="Toy", strategy=[torch.nn.Linear])
    with pytest.raises(fedhess.UsageError, match="--trials: expected a whole number, got 'many'"):
        fedhess.run(domains="Toy", trials="many")
    assert read_options({"trials": "3", "parallel": "2", "lr": "0.1"})[0].trials == 3, "as --trials 3 has it"
    with pytest.raises(fedhess.UsageError, match="variants: a search makes its own settings"):
        fedhess.search(domains="Toy", variants="lr=0.3;lr=0.7")
    with pytest.raises(fedhess.UsageError, match="in Python it is ranges="):
        fedhess.search(domains="Toy", range={"alpha": "0:1"})
    with pytest.raises(fedhess.UsageError, match="no job's directory"):
        fedhess.open("nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        fedhess.fly  # noqa: B018
    assert all(getattr(fedhess, name) for name in fedhess.__all__)


def data(scale: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (scale * torch.randn(24, 6, generator=generator), torch.arange(24) % 2) for name in ("a", "b", "c", "d")
    }


def brought() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return data(1.0)


def test_data_that_has_changed_in_a_session_is_what_the_next_job_trains_on(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``command`` for its empty directory."""
    own = {"domains": f"{__name__}:brought", "target": "a", "rounds": 1, "local_steps": 1, "trials": 1, "model": "mlp"}
    fedhess.run(**own, out="before")
    monkeypatch.setattr(sys.modules[__name__], "brought", lambda: data(5.0))
    fedhess.run(**own, out="after")
    memory.MEMORY.clear()
    fedhess.run(**own, out="anew")
    assert recorded("before") != recorded("after")
    assert recorded("after") == recorded("anew")


def test_own_code_that_has_changed_since_is_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    file = Path("changing_rule.py")
    file.write_text("from fedhess.alignment import DomainStrategy\n\nclass Rule(DomainStrategy): ...\n")
    assert command(*TOY, "--strategy", "changing_rule:Rule", "--out", "job").status == 0
    before = json.loads(Path("job/config.json").read_text())["environment"]["own_code"]
    assert list(before) == ["changing_rule:Rule"]
    file.write_text(file.read_text() + "# changed\n")
    outcome = command("--add", "--trials", "2", "--out", "job")
    assert outcome.status == 0, outcome.err
    assert "own_code.changing_rule:Rule: '" in outcome.out
    (added,) = json.loads(Path("job/config.json").read_text())["additions"]
    assert added["environment"]["own_code"] != before


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"], "it was executed"
            exec("".join(cell["source"]).replace("rounds=20", "rounds=2").replace("trials=2", "trials=1"), names)
    assert set(names["rows"]["strategy"]) == {"erm", "hgp"}  # type: ignore[index]
