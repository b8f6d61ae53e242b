"""The measurements for a GPU, at a small size on the CPU: that they run, and that what holds everywhere does."""

import sys

import pytest
import torch

from fedhess.cli.command import run_command
from fedhess.simulations import timing
from fedhess.simulations.benchmarks.gpu import SMALL, measure


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_measurements_run_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["what"]: row for row in measure(SMALL, device="cpu", repeats=1)}
    found = {part: [row for what, row in rows.items() if part in what] for part in ("images/s", "a round")}
    assert [len(several) for several in found.values()] == [4, 3]
    assert all(row["ours"] > 0 for several in found.values() for row in several)
    [apart] = [row["ours"] for what, row in rows.items() if "difference to the CPU's weights" in what]
    [same] = [row["ours"] for what, row in rows.items() if "equal bits in two runs" in what]
    assert (apart, same) == (0.0, 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["timing", "--only", "gpu", "--allow-dirty"])
    assert run_command(timing.cli, "timing") == 2
    assert "--only gpu: torch sees no CUDA device" in capsys.readouterr().err
