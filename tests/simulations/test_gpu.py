"""The measurements for a GPU, at a small size on the CPU: that they run, and that what holds everywhere does."""

import math
import sys

import pytest
import torch

from fedhess.cli.command import run_command
from fedhess.simulations import timing
from fedhess.simulations.benchmarks.gpu import SMALL, difference, measure


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_measurements_run_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["what"]: row for row in measure(SMALL, device="cpu", repeats=1)}
    found = {part: [row for what, row in rows.items() if part in what] for part in ("images/s", "a round")}
    assert [len(several) for several in found.values()] == [4, 3]
    assert all(row["ours"] > 0 for several in found.values() for row in several)
    apart = [row["ours"] for what, row in rows.items() if "difference to the CPU's way" in what]
    [same] = [row["ours"] for what, row in rows.items() if "equal bits in two runs" in what]
    assert (apart, same) == ([0.0, 0.0], 1.0)


def test_difference_is_relative_to_the_way_from_the_start() -> None:
    start = {"still": torch.full((2,), 100.0), "moved": torch.zeros(2), "count": torch.tensor(0)}
    ours, other = ({**start, "moved": torch.tensor(way)} for way in ([3.0, 4.0], [3.0, 4.5]))
    assert difference(start, ours, other) == pytest.approx(0.5 / math.hypot(3, 4.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["timing", "--only", "gpu", "--allow-dirty"])
    assert run_command(timing.cli, "timing") == 2
    assert "--only gpu: torch sees no CUDA device" in capsys.readouterr().err
