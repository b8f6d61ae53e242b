"""CONTRIBUTING.md keeps its word: the strategy printed there trains, and its coefficient matters."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
QUICK = ["--domains", "IconPACS", "--model", "mlp", "--target", "sketch", "--batch-size", "32", "--local-steps", "2"]
TRAINING = ["--rounds", "4", "--lr", "0.01", "--server-optimizer", "SGD", "--server-lr", "1", "--evaluate-every", "1"]


@pytest.fixture(scope="module")
def code() -> str:
    return re.findall(r"^```python\n(.*?)^```$", CONTRIBUTING.read_text(encoding="utf-8"), re.S | re.M)[0]


@pytest.fixture(scope="module")
def folder(code: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contributed")
    (path / "direction.py").write_text(code, encoding="utf-8")
    return path


def simulate(folder: Path, *, strategy: str, args: str = "") -> Path:
    """Run the command as CONTRIBUTING.md does; return the directory of the one run."""
    out = folder / f"out-{strategy.rpartition(':')[2]}-{args}"
    command = [sys.executable, "-m", "fedhess.simulate", *QUICK, *TRAINING, "--strategy", strategy, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(folder), "FEDHESS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--strategy-args", args, "--quiet"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*/sketch/0"))


def weights(run: Path) -> dict[str, Tensor]:
    tensors = load_file(next((run / "checkpoint").glob("*.safetensors")))
    return {name: value for name, value in tensors.items() if name.startswith("model/")}


def source_losses(run: Path) -> list[float]:
    """Mean held-out loss of the source domains by round, from the untrained model on."""
    losses: dict[int, list[float]] = {}
    for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["role"] == "source" and row.get("loss") is not None:
            losses.setdefault(row["round"], []).append(row["loss"])
    return [sum(values) / len(values) for _, values in sorted(losses.items())]


def test_strategy_takes_30_lines(code: str) -> None:
    assert len(code.splitlines()) <= 30


def test_printed_strategy_trains_and_its_coefficient_matters(folder: Path) -> None:
    strong = simulate(folder, strategy="direction:Direction", args="coefficient=0.5")
    losses = source_losses(strong)
    assert len(losses) == 5
    assert losses[-1] < losses[0]

    off = weights(simulate(folder, strategy="direction:Direction", args="coefficient=0"))
    baseline = weights(simulate(folder, strategy="erm"))
    assert off.keys() == baseline.keys()
    assert off
    assert all(torch.equal(off[name], value) for name, value in baseline.items())
    assert any(not torch.equal(value, baseline[name]) for name, value in weights(strong).items())


def test_printed_penalty_is_zero_where_directions_agree(code: str) -> None:
    namespace: dict[str, object] = {"__name__": "direction"}
    exec(compile(code, "direction.py", "exec"), namespace)  # the documented code is what is tested
    strategy = namespace["Direction"](coefficient=2.0)  # type: ignore[operator]

    class Batch:
        @staticmethod
        def statistic(function: object) -> Tensor:
            return torch.tensor([[3.0, 0.0], [0.0, 4.0]])

    penalty = strategy.penalty(Batch(), {"gradient": torch.tensor([[6.0, 0.0], [0.0, 8.0]])})
    assert penalty == pytest.approx(0.0, abs=1e-6)
    assert strategy.penalty(Batch(), {"gradient": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}) == pytest.approx(2.0)
