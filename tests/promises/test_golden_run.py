"""The numbers of a small run stay what they were: unchanged mathematics means unchanged results.

tests/promises/golden/rounds.jsonl was written by::

    python -m fedhess.simulate --domains IconPACS --target sketch --rounds 3 --strategy hgp --seed 0 --trials 1 \
        --local-steps 2 --batch-size 32 --lr 0.05 --momentum 0.9 --evaluate-every 1 \
        --device cpu --out golden

and only a commit that means to change numerics may replace it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhess.jobs.metrics import accuracy
from tests.conftest import Outcome

GOLDEN = Path(__file__).parent / "golden" / "rounds.jsonl"
ARGUMENTS = [
    *("--domains", "IconPACS", "--target", "sketch", "--rounds", "3", "--strategy", "hgp", "--seed", "0"),
    *("--trials", "1"),
    *("--local-steps", "2", "--batch-size", "32", "--lr", "0.05", "--momentum", "0.9", "--evaluate-every", "1"),
    *("--device", "cpu", "--json", "--out", "golden"),
]
EXACT = ("round", "domain", "client", "role", "split", "examples", "failures", "bytes_down", "bytes_up", "sent")
# Other processors round otherwise; distances are differences of nearly equal vectors, and the HGP is of fourth order.
RELATIVE = {"loss": 1e-4, "train_loss": 1e-4, "train_objective": 1e-4, "gradient_distance": 1e-3, "hgp_distance": 1e-3}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_run_reproduces_the_committed_rows(command: Callable[..., Outcome], tmp_path: Path) -> None:
    done = command(*ARGUMENTS)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["targets"] == ["sketch"], "stdout is JSON and nothing else"
    rows, golden = read(tmp_path / "golden/sketch/0/rounds.jsonl"), read(GOLDEN)
    assert len(rows) == len(golden) == 16
    for row, expected in zip(rows, golden, strict=True):
        where = f"round {expected['round']}, {expected['domain']}"
        assert row.keys() == expected.keys(), where
        assert {key: row[key] for key in EXACT} == {key: expected[key] for key in EXACT}, where
        for key, tolerance in RELATIVE.items():
            if expected[key] is None:
                assert row[key] is None, f"{where}, {key}"
            else:
                assert row[key] == pytest.approx(expected[key], rel=tolerance), f"{where}, {key}"
        one_example = 1.0 / expected["examples"]
        assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=one_example * 1.01), where
        assert accuracy(row["confusion"]) == row["accuracy"], where
        confidence, recorded = (sum(sure for _, _, sure in of["calibration"]) for of in (row, expected))
        assert confidence == pytest.approx(recorded, rel=1e-4), where
