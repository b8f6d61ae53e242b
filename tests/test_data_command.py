"""``python -m fedhess.data``: what it finds, says and ends with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Outcome
from hub_server import REPOSITORY, Hub, parquet, serving
from image_trees import write_image, write_tree

from fedhess import data
from fedhess.domains import download, release, vlcs
from fedhess.domains.counts import KnownCounts
from fedhess.domains.vlcs import CLASSES, RELEASE

Command = Callable[..., Outcome]
DOMAINS = tuple(RELEASE.layout.domains)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command in this process, with a cache of its own and without a network."""
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.setattr(release, "SIDE", 24)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            data.main()
        said = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VLCS, small, with the counts of a complete copy set to its own: 2 images a class."""
    counts = {domain: dict.fromkeys(CLASSES, 2) for domain in DOMAINS}
    known = KnownCounts(dict.fromkeys(DOMAINS, 10), classes=counts)
    monkeypatch.setattr(vlcs, "RELEASE", replace(RELEASE, known=known))
    return write_tree(tmp_path / "data", DOMAINS, dict.fromkeys(CLASSES, 2))


def report(run: Command, root: Path, name: str = "VLCS") -> dict[str, object]:
    outcome = run("check", name, "--data-dir", root, "--json")
    assert outcome.err == ""
    found: dict[str, object] = json.loads(outcome.out)
    assert outcome.status == (0 if found["ok"] else 1)
    return found


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_complete_copy_is_well(run: Command, tree: Path) -> None:
    outcome = run("check", "vlcs", "--data-dir", tree)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "checking 10 images of Caltech101"
    assert f"VLCS in {tree}" in lines
    assert "domain      images  bird  car  chair  dog  person" in lines
    assert "Caltech101  10      2     2    2      2    2" in lines
    assert lines[-1] == "all is well: every count is that of the complete copy"
    found = report(run, tree)
    assert found["counts"] == {domain: dict.fromkeys(CLASSES, 2) for domain in DOMAINS}
    assert (found["problems"], found["notes"], found["broken"], found["duplicates"]) == ([], [], {}, [])


def test_everything_wrong_is_found_at_once(run: Command, tree: Path) -> None:
    shutil.rmtree(tree / "SUN09")
    shutil.rmtree(tree / "LabelMe" / "dog")
    for file in (tree / "LabelMe" / "car").iterdir():
        file.unlink()
    bad = tree / "VOC2007" / "dog" / "pic_001.png"
    bad.write_bytes(bad.read_bytes()[:70])
    gone = tree / "VOC2007" / "dog" / "pic_002.jpg"
    gone.symlink_to("nowhere.jpg")
    shutil.copy(tree / "VOC2007" / "bird" / "pic_000.jpg", tree / "Caltech101" / "chair" / "again.jpg")
    (tree / "VOC2007" / "dog" / "list.txt").write_text("a list")
    (tree / "VOC2007" / "cat").mkdir()
    found = report(run, tree)
    assert found["problems"] == [
        f"domain 'SUN09' is missing; expected {tree}/VLCS/{{{','.join(DOMAINS)}}}/{{{','.join(CLASSES)}}}/*.jpg",
        "domain 'LabelMe' lacks 'dog'",
        "domain 'LabelMe': no image in the folder of 'car'",
        "domain 'Caltech101': 11 images, the complete copy has 10 (chair 3 of 2)",
        "domain 'LabelMe': 6 images, the complete copy has 10 (car 0 of 2, dog 0 of 2)",
        "domain 'VOC2007': 11 images, the complete copy has 10 (dog 3 of 2)",
    ]
    assert set(found["broken"]) == {str(bad), str(gone)}  # type: ignore[call-overload]
    assert found["broken"][str(gone)] == "a link that leads nowhere"  # type: ignore[index]
    assert found["duplicates"] == [
        [str(tree / "Caltech101" / "chair" / "again.jpg"), str(tree / "VOC2007" / "bird" / "pic_000.jpg")]
    ]
    assert found["notes"] == [
        f"{tree / 'VOC2007'}: no class of VLCS, ignored: 'cat'",
        f"domain 'VOC2007': 1 files are no images, the first {tree / 'VOC2007' / 'dog' / 'list.txt'}: ignored",
    ]
    text = run("check", "VLCS", "--data-dir", tree, "--quiet").out
    assert "LabelMe     6 of 10   2     0 of 2  2       0 of 2  2" in text
    assert f"broken: {bad}: " in text
    assert "duplicate, the same bytes in several domains: " in text
    assert text.splitlines()[-1] == "9 things are wrong"


def test_a_domain_and_a_class_that_are_there_twice(run: Command, tree: Path) -> None:
    shutil.copytree(tree / "SUN09", tree / "SUN")
    shutil.copytree(tree / "VOC2007" / "dog", tree / "VOC2007" / "3")
    problems = report(run, tree)["problems"]
    assert f"domain 'SUN09' is there more than once: {tree / 'SUN'} and {tree / 'SUN09'}" in problems  # type: ignore[operator]
    assert any("class 'dog' is there more than once" in problem for problem in problems)  # type: ignore[attr-defined]


def test_two_copies_are_a_problem(run: Command, tree: Path, tmp_path: Path) -> None:
    for name in ("VLCS", "vlcs"):
        shutil.copytree(tree, tmp_path / "two" / name)
    (problem,) = report(run, tmp_path / "two")["problems"]  # type: ignore[misc]
    assert problem.startswith("VLCS is there more than once: ")


def test_absent_data_is_said_with_where_and_how(run: Command, tmp_path: Path) -> None:
    outcome = run("check", "OfficeHome")
    assert outcome.status == 1
    assert (
        f"wrong: OfficeHome is not here: looked in {tmp_path / 'cache' / 'OfficeHome'}. Ways to get it:" in outcome.out
    )
    assert "  2. run `python -m fedhess.data prepare OfficeHome` where the hub can be reached" in outcome.out
    assert outcome.out.splitlines()[-1] == "1 thing is wrong"


def test_many_classes_are_summed_up(run: Command, tmp_path: Path) -> None:
    from fedhess.domains.office_home import RELEASE as OFFICE_HOME

    root = write_tree(tmp_path / "o", list(OFFICE_HOME.layout.domains), dict.fromkeys(OFFICE_HOME.layout.classes, 1))
    outcome = run("check", "OfficeHome", "--data-dir", root)
    assert "Real World  65 of 4,357  65 of 65, 1 to 1 each" in outcome.out
    assert "wrong: domain 'Art': 65 images, the complete copy has 2,427" in outcome.out


def test_a_tree_of_ones_own_is_checked(run: Command, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "mine", ["a", "b", "c"], {"é": 2, "y": 1})
    outcome = run("check", f"folder:{root}")
    assert outcome.status == 0
    assert outcome.out.splitlines()[-1].startswith("all is well, as far as can be seen")
    (root / "a" / "y" / "pic_000.jpg").write_bytes(b"")
    shutil.rmtree(root / "b" / "y")
    outcome = run("check", f"folder:{root}", "--json")
    found = json.loads(outcome.out)
    assert outcome.status == 1
    assert found["problems"][0].endswith("'b' lacks 'y'")
    assert list(found["broken"]) == [str(root / "a" / "y" / "pic_000.jpg")]


def test_what_is_in_the_package_is_well(run: Command, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHESS_CACHE", str(session_cache))  # where its images have been drawn
    outcome = run("check", "IconPACS", "--json")
    found = json.loads(outcome.out)
    assert (outcome.status, found["ok"]) == (0, True)
    assert found["counts"]["photo"]["dog"] == 60


def test_absent_mnist_is_a_problem(run: Command, tmp_path: Path) -> None:
    outcome = run("check", "RotatedMNIST")
    assert outcome.status == 1
    assert f"RotatedMNIST is not here: looked in {tmp_path / 'cache' / 'mnist'}" in outcome.out
    (tmp_path / "raw" / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "raw" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"short")
    outcome = run("check", "RotatedMNIST", "--data-dir", tmp_path / "raw")
    assert outcome.status == 1
    assert "train-labels-idx1-ubyte is damaged: expected 60008 bytes, got 5" in outcome.out


# -- prepare -----------------------------------------------------------------------------------------------------------


def test_prepare_finds_what_is_there_and_reads_it_once(run: Command, tree: Path) -> None:
    outcome = run("prepare", "VLCS", "--data-dir", tree, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out) == {
        "benchmark": "VLCS",
        "where": str(tree),
        "examples": dict.fromkeys(DOMAINS, 10),
        "model": None,
    }
    outcome = run("prepare", "VLCS", "--data-dir", tree, "--model", "mlp")
    assert outcome.out.splitlines()[-2:] == [
        f"VLCS is ready in {tree}: Caltech101 10, LabelMe 10, SUN09 10, VOC2007 10",
        "model mlp is ready",
    ]


def test_prepare_says_why_data_cannot_be_had(run: Command) -> None:
    for name, reason in (("VLCS", "the hub has no copy of it"), ("PACS", "HF_HUB_OFFLINE is set")):
        outcome = run("prepare", name)
        assert outcome.status == 1
        assert outcome.err.startswith(f"fedhess: {name} cannot be had: {reason}. Ways to get it:\n  1. ")


@pytest.fixture
def hub(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with VLCS on it."""
    rows = [(file.read_bytes(), file.parts[-3], file.parts[-2]) for file in sorted(tree.rglob("pic_*"))]
    content = parquet(tmp_path / "x.parquet", rows, list(CLASSES), None)
    monkeypatch.setattr(vlcs, "RELEASE", replace(vlcs.RELEASE, repository=REPOSITORY, size="1 MB"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    with serving(Hub({"data/train-00000-of-00001.parquet": content})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def test_prepare_downloads_and_then_no_network_is_needed(
    run: Command, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.cut_after = 2000
    first = run("prepare", "VLCS", "--quiet")
    assert first.status == 1
    assert "2,000 bytes are kept" in first.err
    hub.cut_after = None
    second = run("prepare", "VLCS")
    assert second.status == 0, second.err
    assert f"{REPOSITORY}: file 1 of 1, data/train-00000-of-00001.parquet, 0 MB" in second.out
    assert hub.asked[-1] == ("data/train-00000-of-00001.parquet", "bytes=2000-")
    assert second.out.splitlines()[-2].startswith(f"VLCS is ready in {tmp_path / 'cache' / 'VLCS'}: Caltech101 10")
    assert second.out.splitlines()[-1].endswith("come with the first run, or now with --model resnet18")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("check", "VLCS").status == 0


# -- list, help, mistakes ----------------------------------------------------------------------------------------------


def test_list_says_what_is_here_and_what_is_not(run: Command, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHESS_DATA", str(tree))
    entries = {entry["name"]: entry for entry in json.loads(run("list", "--json").out)}
    assert list(entries) == list(data.BENCHMARKS)
    assert {name for name, entry in entries.items() if entry["here"]} == {"IconPACS", "VLCS"}
    assert entries["VLCS"]["where"] == str(tree)
    assert entries["DomainNet"]["looked_in"][0] == str(tree)
    shutil.rmtree(tree / "SUN09")
    text = run("list").out
    assert "WRONG: VLCS in " in text
    assert "DomainNet       6 domains, 345 classes, 586,575 images" in text
    assert text.count("to get it: ") == len(data.BENCHMARKS) - 1


def test_help_names_the_commands_and_the_status(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(run("--help").out.split())
    for word in (
        "list",
        "check",
        "prepare",
        "Exit status: 0 when all is well, 1 when something is missing",
        "FEDHESS_CACHE",
    ):
        assert word in text
    assert "--json" in run("check", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "PACZ"], "fedhess: unknown benchmark 'PACZ'; did you mean 'PACS'?"),
        (["check", "VLCS", "--data-dir", "nowhere"], "fedhess: data folder nowhere cannot be read: No such file"),
        (
            ["check", "Digits", "--data-dir", "nowhere"],
            "fedhess: --data-dir: nowhere is no folder; give an existing one",
        ),
        (["check", "folder:nowhere"], "fedhess: data folder nowhere cannot be read: No such file"),
        (["check", "folder:a", "--data-dir", "b"], "expected one of the two; leave --data-dir out"),
        (["check", "Digits", "--domains-args", "svhm"], "--domains-args: expected key=value"),
        (["check"], "Missing argument 'NAME'"),
        (["prepare", "IconPACS", "--model", "resnet81"], "unknown model 'resnet81'; did you mean 'resnet18'?"),
        (["prepare", "PACS", "--data-dir", "nowhere"], "data folder nowhere cannot be read"),
        (["mend", "PACS"], "No such command 'mend'"),
    ],
)
def test_a_mistake_is_named_with_status_2(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_the_module_runs(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x" / "1.png", 1)
    command = [sys.executable, "-m", "fedhess.data", "check", f"folder:{tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected ROOT/DOMAIN/CLASS/image with at least three domains" in done.stdout
    assert done.stderr == ""
