"""What the measuring commands refuse before they measure, and that they leave what is there alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TOY, Outcome

from fedhess.domains import BENCHMARKS
from simulations import diversity_shift, load, timing, transferability
from simulations.comparison import Comparison
from simulations.measurement import Configuration
from simulations.outputs import require_writable
from simulations.scenario import run_scenario

Call = Callable[..., Outcome]
COMPARISON = Comparison(name="toy", title="Toy", published={})


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run a command in an empty directory; it fails the test if anything is measured or trained."""
    monkeypatch.chdir(tmp_path)

    def measured(*_: object, **__: object) -> None:
        pytest.fail("it began to measure")

    for place, name in ((timing, "import_module"), (load, "many_clients"), (load, "real_nodes")):
        monkeypatch.setattr(place, name, measured)
    monkeypatch.setattr(transferability, "run_job", measured)
    monkeypatch.setattr("simulations.scenario.measure", measured)

    def run(module: ModuleType, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        if module is diversity_shift:
            status = diversity_shift.run_command(diversity_shift.cli)
        else:
            with pytest.raises(SystemExit) as stop:
                module.main()
            status = int(stop.value.code or 0)
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


@pytest.mark.parametrize("module", [timing, load, transferability, diversity_shift], ids=lambda m: m.__name__)
@pytest.mark.parametrize("out", ["/proc/none/a.json", "file/below/a.json"])
def test_what_cannot_be_written_is_found_before_anything_runs(module: ModuleType, out: str, call: Call) -> None:
    Path("file").write_text("precious", encoding="utf-8")
    outcome = call(module, "--out", out)
    assert outcome.status == 2, outcome.err
    assert f"--out: cannot write to {out}" in outcome.err
    assert "; give another --out" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(Path().rglob("*")) == [Path("file")], "no folder is left behind"


@pytest.mark.parametrize("module", [timing, load, transferability], ids=lambda m: m.__name__)
def test_a_folder_or_the_name_of_the_table_is_no_file_for_results(module: ModuleType, call: Call) -> None:
    Path("folder").mkdir()
    for out, said in (
        ("folder", "expected a file, got the folder folder"),
        ("a.md", "expected a name in .json, got a."),
        ("a.svg", "expected a name in .json, got a."),
    ):
        outcome = call(module, "--out", out)
        assert outcome.status == 2
        assert f"--out: {said}" in outcome.err


@pytest.mark.parametrize("module", [timing, load, transferability], ids=lambda m: m.__name__)
@pytest.mark.parametrize("text", ["{", "[]", '{"engine": {}}', "\udcff"])
def test_damaged_results_are_refused_and_left_alone(module: ModuleType, text: str, call: Call) -> None:
    data = text.encode(errors="surrogateescape")
    Path("a.json").write_bytes(data)
    outcome = call(module, "--out", "a.json")
    assert outcome.status == 2, outcome.err
    assert "a.json is damaged" in outcome.err
    assert "delete it, or give another --out" in outcome.err
    assert "Traceback" not in outcome.err
    assert Path("a.json").read_bytes() == data


def test_results_of_another_command_are_refused(call: Call) -> None:
    results = Path(load.__file__).parent / "results"
    for module, other in ((timing, "load.json"), (load, "timing.json")):
        Path(other).write_bytes((results / other).read_bytes())
        outcome = call(module, "--out", other)
        assert outcome.status == 2
        assert f"--out: {other} is damaged, or holds other results (KeyError: " in outcome.err


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (timing, ["--repeats", "0"], "Invalid value for '--repeats': 0 is not in the range x>=1"),
        (timing, ["--only", ","], "--only: expected some of head, engine, rounds, "),
        (load, ["--only", ","], "--only: expected in-process, deployed, or both, got nothing"),
        (load, ["--only", ""], "--only: expected in-process, deployed, or both, got nothing"),
    ],
)
def test_nothing_to_measure_is_a_mistake(module: ModuleType, arguments: list[str], said: str, call: Call) -> None:
    outcome = call(module, *arguments)
    assert outcome.status == 2
    assert said in outcome.err


def test_quick_transferability_leaves_full_results_alone(call: Call) -> None:
    for there, option, kinds in (
        (False, ["--quick"], "full results, quick ones"),
        (True, [], "quick results, full ones"),
    ):
        text = json.dumps({"quick": there})
        Path("a.json").write_text(text, encoding="utf-8")
        outcome = call(transferability, *option, "--out", "a.json")
        assert outcome.status == 2
        assert f"--out: a.json holds {kinds} are not mixed with them; choose another" in outcome.err
        assert Path("a.json").read_text(encoding="utf-8") == text


def test_quick_transferability_goes_to_a_place_of_its_own(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = Path(transferability.__file__).parent / "results" / "transferability.json"
    before = committed.read_bytes()
    assert command(*TOY, "--strategy", "erm", "--quiet", "--out", "job").status == 0
    monkeypatch.setattr(sys, "argv", ["transferability", "--quick", "--job", "job"])
    with pytest.raises(SystemExit) as stop:
        transferability.main()
    assert not stop.value.code
    assert committed.read_bytes() == before
    assert sorted(path.name for path in Path("runs/quick").iterdir()) == [
        f"transferability.{ending}" for ending in ("json", "md", "png", "svg")
    ]


def test_a_folder_that_is_not_there_yet_can_be_written(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder" / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_scenario_writes_into_a_new_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    settings = {"model": "mlp", "rounds": 1, "local_steps": 1, "batch_size": 8}
    job = Configuration("Toy", "erm", 0, {"holdout": 0.25}, overrides=settings, target="east")
    out = tmp_path / "new" / "folder"
    assert run_scenario(COMPARISON, [job], quick=False, out=out, runs=None, device="cpu")
    assert sorted(path.name for path in out.iterdir()) == ["toy.json", "toy.md", "toy.png", "toy.svg"]
    assert "selection by source validation" in (out / "toy.md").read_text(encoding="utf-8")
