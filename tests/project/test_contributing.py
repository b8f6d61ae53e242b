"""The strategy printed in docs/write-a-strategy.md trains, and its coefficient matters."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import TOY, Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write-a-strategy.md"
Simulate = Callable[..., Path]


@pytest.fixture(scope="module")
def code() -> str:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)[0]


@pytest.fixture
def simulate(code: str, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Run the command on the toy benchmark beside direction.py; it returns the job's directory."""
    (tmp_path / "direction.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def run(*arguments: str, out: str) -> Path:
        done = command(*arguments, *TOY, "--out", out)
        assert done.status == 0, done.err
        return tmp_path / out

    return run


def weights(run: Path) -> dict[str, Tensor]:
    tensors = load_file(max((run / "checkpoint").glob("*.safetensors")))
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


def test_printed_strategy_trains_and_its_coefficient_matters(simulate: Simulate) -> None:
    printed = re.findall(r"python -m fedhess.simulate (.*)$", PAGE.read_text(encoding="utf-8"), re.M)[0]
    job = simulate(*printed.split(), out="both")
    baseline, aligned = job / "erm" / "east" / "0", job / "direction-Direction" / "east" / "0"
    losses = source_losses(aligned)
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    expected = weights(baseline)
    assert any(not torch.equal(value, expected[name]) for name, value in weights(aligned).items())

    off = simulate("--strategy", "direction:Direction", "--strategy-args", "coefficient=0", out="off")
    unaligned = weights(off / "east" / "0")
    assert unaligned.keys() == expected.keys()
    assert all(torch.equal(unaligned[name], value) for name, value in expected.items())


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
