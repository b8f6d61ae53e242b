"""The load command on a real, small federation; and that growth of every kind would be seen."""

import json
import sys
from pathlib import Path

import pytest

from fedhess.base.errors import FederationError
from fedhess.cli.command import run_command
from fedhess.simulations import load
from fedhess.simulations.benchmarks.watching import Held, Watched, watch

LEAKS = """
import json, sys, time
kept, files = [], []
path = sys.argv[1]
for number in range(7):
    kept.append(bytearray(20_000_000))
    files.append(open(__file__ if "__file__" in globals() else "/dev/null"))
    time.sleep(0.6)
    with open(path, "a") as rows:
        rows.write(json.dumps({"round": number, "seconds": 0.1 * number}) + "\\n")
time.sleep(0.6)
"""

# Starts a child as a local deployment does, in a session and with a mark of its own.
DEPLOYS = """
import json, sys, time
from pathlib import Path
from fedhess.deploy.processes import processes
from fedhess.deploy.programs import Program
path = Path(sys.argv[1])
with processes(path.parent) as running:
    running.start("child", Program("sleep", ["60"]))
    for number in range(1, 5):
        time.sleep(0.6)
        with path.open("a") as rows:
            rows.write(json.dumps({"round": number, "seconds": 0.6}) + "\\n")
"""


@pytest.mark.usefixtures("rendered_figures")
@pytest.mark.slow
def test_a_federation_is_watched_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    arguments = ["load", "--only", "in-process", "--clients", "20", "--rounds", "6", "--out", str(out), "--allow-dirty"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_command(load.cli) == 0, capsys.readouterr().err
    series = json.loads(out.read_text(encoding="utf-8"))["in-process"]["series"]
    assert set(series) == {
        "a round (s)", "processes", "fedhess.simulate: memory (MB)", "fedhess.simulate: open files"
    }  # fmt: skip
    assert {len(values) for values in series.values()} <= {4, 5, 6}, "a quick round may pass between two looks"
    assert min(min(values) for values in series.values()) > 0
    assert 100 < series["fedhess.simulate: memory (MB)"][-1] < 5000
    assert "## 20 clients in one process, 6 rounds" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").stat().st_size > 5000


@pytest.mark.slow
def test_a_process_that_keeps_memory_and_files_is_found_out(tmp_path: Path) -> None:
    rows = tmp_path / "rounds.jsonl"
    watched = watch([sys.executable, "-c", LEAKS, str(rows)], rounds=rows)
    recorded = {"leak": {"what": "a leak", "environment": load.describe_environment(), "series": watched.series()}}
    verdicts = {line.split(" | ")[0]: line for line in load.render(recorded).splitlines()}
    assert watched.seconds == pytest.approx({number: 0.1 * number for number in range(1, 7)})
    for kind in ("memory (MB)", "open files", "a round (s)"):
        (line,) = [line for label, line in verdicts.items() if label.endswith(kind)]
        assert line.endswith("| NO |"), line
    assert verdicts["| processes"].endswith("| 1.000 | 1.05 | yes |")


def test_the_processes_of_a_deployment_are_watched(tmp_path: Path) -> None:
    rows = tmp_path / "rounds.jsonl"
    watched = watch([sys.executable, "-c", DEPLOYS, str(rows)], rounds=rows)
    assert "sleep" in watched.lasting()
    assert set(watched.series()["processes"]) == {2.0}


def test_processes_that_pile_up_are_found_out() -> None:
    held = {number: {pid: Held(10.0, 3) for pid in range(number)} for number in range(1, 10)}
    watched = Watched(dict.fromkeys(range(10), "node"), held, dict.fromkeys(range(1, 10), 1.0))
    series = watched.series()
    assert load.growth(series["processes"]) > 1.5
    assert watched.lasting() == {"node": [0]}


def test_a_command_that_fails_is_shown_with_its_last_words(tmp_path: Path) -> None:
    fails = "print('x' * 300_000); print('out of luck'); raise SystemExit(3)"  # more than a pipe holds
    with pytest.raises(FederationError, match=r"(?s)ended with status 3; its last words:.*out of luck"):
        watch([sys.executable, "-c", fails], rounds=tmp_path / "none")
