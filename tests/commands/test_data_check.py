"""``python -m fedhess.data check``: everything that can be wrong with data, found at once and named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_trees import write_tree

from fedhess.domains import TensorDomain
from fedhess.domains.benchmark import KnownCounts
from fedhess.domains.images.releases import RELEASES
from fedhess.domains.images.releases import VLCS_CLASSES as CLASSES
from fedhess.domains.inspection.check import example_keys, shared
from tests.conftest import Outcome

Command = Callable[..., Outcome]
RELEASE, OFFICE_HOME = RELEASES["VLCS"], RELEASES["OfficeHome"]
DOMAINS = tuple(RELEASE.layout.domains)


@pytest.fixture
def run(data_command: Command) -> Command:
    return data_command


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VLCS, small, with the counts of a complete copy set to its own: 2 images a class."""
    counts = {domain: dict.fromkeys(CLASSES, 2) for domain in DOMAINS}
    known = KnownCounts(dict.fromkeys(DOMAINS, 10), classes=counts)
    monkeypatch.setitem(RELEASES, "VLCS", replace(RELEASE, known=known))
    return write_tree(tmp_path / "data", DOMAINS, dict.fromkeys(CLASSES, 2))


def report(run: Command, root: Path, name: str = "VLCS") -> dict[str, object]:
    outcome = run("check", name, "--data-dir", root, "--json")
    assert outcome.err == ""
    found: dict[str, object] = json.loads(outcome.out)
    assert outcome.status == (0 if found["ok"] else 1)
    return found


def test_a_complete_copy_is_well(run: Command, tree: Path) -> None:
    outcome = run("check", "vlcs", "--data-dir", tree)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "checking 10 images of Caltech101"
    assert f"VLCS in {tree}" in lines
    assert "| domain     | images | bird | car | chair | dog | person |" in lines
    assert "| Caltech101 |     10 |    2 |   2 |     2 |   2 |      2 |" in lines
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
    expected = RELEASE.layout.expected(tree)
    assert found["problems"] == [
        f"VLCS in {tree}: no domain 'SUN09', found Caltech101, LabelMe, VOC2007; expected {expected}",
        "domain 'LabelMe' lacks 'dog'",
        "domain 'LabelMe': no image in the folder of 'car'",
        "domain 'Caltech101': 11 images, the complete copy has 10 (chair 3 of 2)",
        "domain 'LabelMe': 6 images, the complete copy has 10 (car 0 of 2, dog 0 of 2)",
        "domain 'VOC2007': 11 images, the complete copy has 10 (dog 3 of 2)",
    ]
    assert set(found["broken"]) == {str(bad), str(gone)}  # type: ignore[call-overload]
    assert found["broken"][str(gone)] == "No such file or directory"  # type: ignore[index]
    assert found["duplicates"] == [
        [str(tree / "Caltech101" / "chair" / "again.jpg"), str(tree / "VOC2007" / "bird" / "pic_000.jpg")]
    ]
    assert found["notes"] == [
        f"{tree / 'VOC2007'}: no class of VLCS, ignored: 'cat'",
        f"domain 'VOC2007': 1 files are no images, ignored: '{tree / 'VOC2007' / 'dog' / 'list.txt'}'",
    ]
    text = run("check", "VLCS", "--data-dir", tree, "--quiet").out
    assert "| LabelMe    |  6 of 10 |    2 | 0 of 2 |      2 | 0 of 2 |      2 |" in text
    assert f"broken: {bad}: " in text
    assert "duplicate, the same bytes in several domains: " in text
    assert text.splitlines()[-1] == "9 things are wrong"


def test_a_class_that_is_there_twice_is_a_problem(run: Command, tree: Path) -> None:
    shutil.copytree(tree / "VOC2007" / "dog", tree / "VOC2007" / "3")
    twins = f"{tree / 'VOC2007' / '3'} and {tree / 'VOC2007' / 'dog'}"
    assert report(run, tree)["problems"] == [f"'dog' is there more than once: {twins}; keep one"]


def test_images_in_memory_are_compared_too() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(6, 1, 2)
    domains = {"a": images[:3], "b": images[2:5], "c": images[5:]}
    data = {name: TensorDomain(name, each, labels=torch.zeros(len(each))) for name, each in domains.items()}
    keys = {name: example_keys(each) for name, each in data.items()}
    assert shared(keys, lambda domain, index: f"{domain}[{index}]") == [["a[2]", "b[0]"]]


def test_absent_data_is_said_with_where_and_how(run: Command, tmp_path: Path) -> None:
    outcome = run("check", "OfficeHome")
    assert outcome.status == 1
    assert (
        f"wrong: OfficeHome is not here: looked in {tmp_path / 'cache' / 'OfficeHome'}. Ways to get it:" in outcome.out
    )
    assert "  2. run `python -m fedhess.data prepare OfficeHome` where the hub can be reached" in outcome.out
    assert outcome.out.splitlines()[-1] == "1 thing is wrong"


def test_many_classes_are_summed_up(run: Command, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "o", list(OFFICE_HOME.layout.domains), dict.fromkeys(OFFICE_HOME.layout.classes, 1))
    outcome = run("check", "OfficeHome", "--data-dir", root)
    assert "| Real World | 65 of 4,357 | 65 of 65, 1 to 1 each |" in outcome.out
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
    assert found["broken"] == {str(root / "a" / "y" / "pic_000.jpg"): "empty file"}


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
