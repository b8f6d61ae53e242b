"""What the measuring commands refuse before they measure, and that they leave what is there alone."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedhess.base import environment
from fedhess.cli.command import run_command
from fedhess.domains import BENCHMARKS
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.simulations import diversity_shift, load, timing, transferability
from fedhess.simulations.benchmarks import head, measuring
from fedhess.simulations.scenarios.comparison import Comparison, render
from fedhess.simulations.scenarios.measurement import Configuration, measure, warnings_of
from fedhess.simulations.scenarios.running import Options, run_scenario
from tests.conftest import TOY, Outcome

Call = Callable[..., Outcome]
COMPARISON = Comparison(name="toy", title="Toy", published={})


@pytest.fixture
def call(command: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in an empty directory; it fails the test if anything is measured or trained."""

    def measured(*_: object, **__: object) -> None:
        pytest.fail("it began to measure")

    for place, name in ((timing, "import_module"), (load, "many_clients"), (load, "real_nodes")):
        monkeypatch.setattr(place, name, measured)
    monkeypatch.setattr(transferability, "run_job", measured)
    monkeypatch.setattr("fedhess.simulations.scenarios.running.measure", measured)
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc")

    return lambda module, *arguments: command(*arguments, of=module)


def refused(outcome: Outcome, *said: str) -> None:
    assert outcome.status == 2, outcome.err
    assert all(text in outcome.err for text in said), outcome.err
    assert "Traceback" not in outcome.err


ALL = pytest.mark.parametrize("module", [timing, load, transferability, diversity_shift], ids=lambda m: m.__name__)


@ALL
@pytest.mark.parametrize("out", ["/proc/none/a.json", "file/below/a.json"])
def test_what_cannot_be_written_is_found_before_anything_runs(module: ModuleType, out: str, call: Call) -> None:
    Path("file").write_text("precious", encoding="utf-8")
    refused(call(module, "--out", out), f"--out: cannot write to {out}", "; give another --out")
    assert list(Path().rglob("*")) == [Path("file")], "no folder is left behind"


@ALL
@pytest.mark.parametrize(("revision", "found"), [("abc-dirty", "uncommitted changes"), (None, "no git checkout")])
def test_results_that_could_not_be_made_again_are_not_measured(
    module: ModuleType, revision: str | None, found: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_git_revision", lambda: revision)
    refused(call(module, "--out", "new.json"), f"expected a clean git checkout, got {found}", "or add --allow-dirty")
    assert list(Path().iterdir()) == []


def test_recorded_results_are_no_change_of_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, results = tmp_path / "fedhess" / "a.py", tmp_path / "simulations" / "results" / "a.json"
    for file in (code, results):
        file.parent.mkdir(parents=True)
        file.write_text("1", encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(environment, "__file__", str(code))
    found = []
    for file in (None, results, code):
        if file is not None:
            file.write_text("2", encoding="utf-8")
        found.append(environment._git_revision.__wrapped__())
    assert len(found[0]) == 40
    assert found == [found[0], found[0], f"{found[0]}-dirty"]


def test_each_time_is_shown_with_the_number_that_it_is_the_median_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_milliseconds", lambda *_, **__: defaultdict(lambda: 1.0))
    monkeypatch.setattr(head, "spectral_distance", lambda *_: None)
    rows = [*head.head_rows(repeats=7), measuring.row("bytes", 3.0)]
    machine = {"platform": "here", "cpu_count": 2, "torch_threads": 1, "git_revision": "abc"}
    machine |= {"versions": {"torch": "2", "flwr": "1"}}
    text = timing.render({"head": {"environment": machine, "rows": rows}})
    assert [line.split("|")[-2].strip() for line in text.splitlines()[-11:]] == ["3", *"77777777", "3", ""]
    assert "medians of" not in text


@pytest.mark.usefixtures("rendered_figures")
@pytest.mark.parametrize("module", [timing, load], ids=lambda m: m.__name__)
def test_render_makes_the_committed_table_again(module: ModuleType, call: Call) -> None:
    committed = module.RESULTS / f"{module.__name__.rpartition('.')[2]}.json"
    Path("a.json").write_bytes(committed.read_bytes())
    assert call(module, "--out", "a.json", "--render").status == 0
    assert Path("a.md").read_bytes() == committed.with_suffix(".md").read_bytes()
    refused(
        call(module, "--out", "b.json", "--render"), "--render: there is no b.json; give the --out of a measurement"
    )


@pytest.mark.parametrize("module", [timing, load, transferability], ids=lambda m: m.__name__)
def test_other_and_damaged_results_are_refused_and_left_alone(module: ModuleType, call: Call) -> None:
    Path("folder").mkdir()
    refused(call(module, "--out", "folder"), "--out: expected a file, got the folder folder")
    refused(call(module, "--out", "a.md"), "--out: expected a name in .json, got a.md")
    for text in ("{", "[]", '{"engine": {}}', "\udcff"):
        data = text.encode(errors="surrogateescape")
        Path("a.json").write_bytes(data)
        refused(call(module, "--out", "a.json"), "a.json is damaged", "delete it, or give another --out")
        assert Path("a.json").read_bytes() == data


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (timing, ["--repeats", "0"], "Invalid value for '--repeats': 0 is not in the range x>=1"),
        (timing, ["--only", ","], "--only: expected some of head, engine, rounds, "),
        (load, ["--only", "deploid"], "--only: 'deploid' is none of this command's; did you mean 'deployed'?"),
    ],
)
def test_nothing_to_measure_is_a_mistake(module: ModuleType, arguments: list[str], said: str, call: Call) -> None:
    refused(call(module, *arguments), said)


def test_quick_transferability_leaves_full_results_alone(call: Call) -> None:
    text = json.dumps({"quick": False})
    Path("a.json").write_text(text, encoding="utf-8")
    said = "--out: a.json holds full results, quick ones are not mixed with them; choose another"
    refused(call(transferability, "--quick", "--out", "a.json"), said)
    assert Path("a.json").read_text(encoding="utf-8") == text


def test_quick_transferability_goes_to_a_place_of_its_own(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = {path: path.read_bytes() for path in transferability.RESULTS.iterdir()}
    assert command(*TOY, "--strategy", "erm", "--quiet", "--out", "job").status == 0
    monkeypatch.setattr(sys, "argv", ["transferability", "--quick", "--job", "job"])
    assert run_command(transferability.cli) == 0
    assert {path: path.read_bytes() for path in transferability.RESULTS.iterdir()} == committed
    assert sorted(path.name for path in Path("runs/quick").iterdir()) == [
        f"transferability-Toy.{ending}" for ending in ("json", "md", "png", "svg")
    ]


def toy_job(strategy: str = "erm", **settings: Any) -> Configuration:
    settings = {"model": "mlp", "local_steps": 1, "batch_size": 8, **settings}
    return Configuration("Toy", strategy, 0, {"holdout": 0.25}, overrides=settings, target="east")


def test_a_scenario_writes_into_a_new_folder_and_says_what_cannot_be_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc-dirty")
    job = toy_job(rounds=1)
    out = tmp_path / "new" / "folder"
    run_scenario(COMPARISON, [job], Options(out=out, device="cpu", allow_dirty=True))
    assert sorted(path.name for path in out.iterdir()) == ["toy.json", "toy.md", "toy.png", "toy.svg"]
    text = (out / "toy.md").read_text(encoding="utf-8")
    assert "selection by source validation" in text
    assert "- erm, seed 0: UNCOMMITTED CHANGES, cannot be made again" in text
    assert "revision abc-dirty (UNCOMMITTED CHANGES: cannot be made again)" in text
    monkeypatch.setattr("fedhess.simulations.scenarios.running.measure", None)
    for made in ("toy.md", "toy.png", "toy.svg"):
        (out / made).unlink()
    run_scenario(COMPARISON, [job], Options(out=out, render_only=True))
    assert (out / "toy.md").read_text(encoding="utf-8") == text
    assert (out / "toy.png").exists()


def test_a_row_names_each_revision_that_its_job_was_continued_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    job = toy_job(rounds=2)
    for revision in ("abc", "def-dirty", "ghi"):  # the last has nothing left to run
        monkeypatch.setattr(environment, "_git_revision", lambda revision=revision: revision)
        row = measure(job, folder=tmp_path, device="cpu")
        if revision == "abc":
            (rounds,) = tmp_path.rglob("rounds.jsonl")
            RunDirectory(rounds.parent).go_back(1)
    text = render(COMPARISON, {"quick": False, "rows": [row]})
    assert "revision abc; continued on " in text
    assert "revision def-dirty (UNCOMMITTED CHANGES: cannot be made again)" in text
    assert "- erm, seed 0: UNCOMMITTED CHANGES, cannot be made again" in text
    assert "ghi" not in text


def test_what_a_row_lacks_stands_below_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    diverging = {"lr": 1e38}
    job = replace(toy_job(rounds=2, server_optimizer="SGD", server_lr=1.0), variants=[{"lr": 0.1}, diverging])
    row = measure(job, folder=tmp_path, device="cpu")
    unfinished, incomplete = row["warnings"]
    assert unfinished.startswith("UNFINISHED: target east, seed 0 (lr=1e+38): round 0 of 2: ")
    assert incomplete == "incomplete: east: of 2 runs 1 failed, 0 left to run"
    text = render(COMPARISON, {"quick": False, "rows": [row]})
    assert f"\n- erm, seed 0: {unfinished}\n- erm, seed 0: {incomplete}\n" in text
    stopped = measure(replace(job, variants=[diverging, {"lr": 2e38}]), folder=tmp_path, device="cpu")
    assert stopped["stopped"].startswith("2 of 2 runs failed: erm (lr=1e+38), target east")


def test_sick_runs_gaps_and_failures_are_warnings() -> None:
    found = {"unfinished": {}, "incomplete": {}, "sick": {"seed 0": "flat"}, "gaps": ["round 3"], "failures": 9}
    found["not_averaged"] = "2 of 3"
    assert warnings_of({"strategies": {"erm": found}}) == {
        "warnings": [
            *("sick: seed 0: flat", "too few source clients evaluated: round 3", "9 failure(s) of clients"),
            "no average had begun: 2 of 3 models",
        ]
    }
