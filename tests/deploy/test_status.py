"""What an operator is shown: Flower's nodes and runs by the names of clients, and the rounds of a real job."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhess.base.errors import FederationError
from fedhess.deploy import status
from fedhess.deploy.programs import Program
from tests.conftest import TOY, Outcome

NODES = [
    {"node-id": "9", "status": "registered", "offline-at": "N/A"},
    {"node-id": "18446744073709551615", "status": "online", "offline-at": "N/A"},
    {"node-id": "7", "status": "offline", "offline-at": "2026-03-01 10:00:00Z"},
]
RUNS = [{"run-id": "5", "status": "running", "running-at": "2026-03-01 09:00:00Z", "finished-at": "N/A"}]


def test_nodes_runs_and_rounds_are_shown_and_can_be_collected(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(program: Program) -> dict[str, Any]:
        return {"nodes": NODES} if "supernode" in program.arguments else {"runs": RUNS}

    monkeypatch.setattr(status, "answer", answer)  # Flower's own answers: tests/faults/test_refused.py
    nodes = {"north": 2**64 - 1, 'a"b': 7}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes), encoding="utf-8")
    assert command(*TOY, "--strategy", "erm", "--out", str(tmp_path / "runs" / "job")).status == 0
    damaged = tmp_path / "runs" / "damaged" / "east" / "0" / "rounds.jsonl"
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"round": \n', encoding="utf-8")
    found = status.read_status(tmp_path / "flower", tmp_path)
    tables = found.tables()
    assert re.search(r"\| runs/damaged/east/0 +\| - +\| .*rounds.jsonl is damaged", tables)
    assert re.search(r"\| north +\| 18446744073709551615 +\| online +\| now  ", tables)
    assert re.search(r"\| a\"b +\| 7 +\| offline +\| 2026-03-01 10:00:00Z \|", tables)
    assert re.search(r"\| - +\| 9 +\| registered \| never +\|", tables)
    assert re.search(r"\| 5 +\| running +\| 2026-03-01 09:00:00Z \| N/A   \|", tables)
    row = found.rows["runs/job/east/0"][0]
    assert row["round"] == 3
    assert re.search(rf"\| runs/job/east/0 +\| 3 +\| .*north {100 * row['accuracy']:.1f}", tables)
    lines = found.metrics().splitlines()
    assert 'fedhess_node_online{client="north",node="18446744073709551615"} 1' in lines
    assert 'fedhess_node_online{client="a\\"b",node="7"} 0' in lines
    assert 'fedhess_runs{status="running"} 1' in lines
    assert 'fedhess_run_round{run="runs/job/east/0"} 3' in lines
    where = 'run="runs/job/east/0",client="north",domain="north",role="source",split="validation"'
    assert f"fedhess_run_accuracy{{{where}}} {row['accuracy']:g}" in lines
    assert f"fedhess_run_failures{{{where}}} 0" in lines
    sample = re.compile(r'(fedhess_\w+)\{(\w+="([^"\\]|\\[\\"n])*",?)+\} -?[0-9.e+-]+')
    kinds = re.compile(r"# (HELP \w+ .+|TYPE \w+ gauge)")
    assert all(sample.fullmatch(line) or kinds.fullmatch(line) for line in lines)
    assert len(set(re.findall(r"(?m)^fedhess_run_accuracy\{.*\}", found.metrics()))) == 4


def test_a_superlink_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"flwr supernode: "):
        status.read_status(tmp_path / "flower", tmp_path)
