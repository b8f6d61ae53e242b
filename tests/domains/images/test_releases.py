"""The image benchmarks in every layout that they are released in, and in layouts that are wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_trees import write_image, write_tree
from PIL import Image

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.images.releases import RELEASES
from tests.conftest import Outcome

LAYOUTS = {name: release.layout for name, release in RELEASES.items()}
OPEN = """
import sys, time
from fedhess.domains import download, open_benchmark
download.DECISION_SECONDS = 1.0
start = time.monotonic()
benchmark = open_benchmark("PACS", notify=lambda message: print(message, file=sys.stderr))
print(benchmark.title, time.monotonic() - start, sep="|")
"""


@pytest.fixture
def trees(complete: dict[str, Path], complete_pacs: Path) -> dict[str, Path]:
    return complete | {"PACS": complete_pacs}


@pytest.fixture
def copy(complete: dict[str, Path], tmp_path: Path) -> Path:
    """A VLCS to damage."""
    return Path(shutil.copytree(complete["VLCS"], tmp_path / "data"))


def refusal(name: str, root: Path | None, **arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        open_benchmark(name, data_dir=root, **arguments)
    return str(caught.value)


# -- Complete ----------------------------------------------------------------------------------------------------------


SIZES = [("PACS", 7), ("VLCS", 5), ("OfficeHome", 65), ("DomainNet", 345), ("TerraIncognita", 10)]


@pytest.mark.parametrize(("name", "classes"), SIZES)
def test_a_local_copy_is_opened_and_opened_again_by_its_options(
    trees: dict[str, Path], name: str, classes: int
) -> None:
    benchmark = open_benchmark(name.upper(), data_dir=trees[name], require_real=True)
    assert (benchmark.title, benchmark.outputs, benchmark.holdout) == (name, classes, 0.2)
    assert (benchmark.input_shape, benchmark.default_model) == ((3, 224, 224), "resnet18")
    assert benchmark.domains == tuple(sorted(benchmark.domains))
    assert [scenario.targets for scenario in benchmark.scenarios] == [(domain,) for domain in benchmark.domains]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    assert again.load(benchmark.domains[0]).digest == benchmark.load(benchmark.domains[0]).digest


@pytest.mark.parametrize("name", ["VLCS", "TerraIncognita"])
def test_images_and_labels_are_those_of_the_folders(trees: dict[str, Path], name: str) -> None:
    benchmark = open_benchmark(name, data_dir=trees[name])
    data = benchmark.load(benchmark.domains[1])
    assert data.labels.tolist() == [label for label in range(len(benchmark.classes)) for _ in range(2)]
    last = sorted((trees[name] / benchmark.domains[1] / benchmark.classes[-1]).iterdir())[-1]
    with Image.open(last) as file:
        pixels = torch.tensor(list(file.convert("RGB").resize((224, 224), 2).tobytes())).view(224, 224, 3)
    assert torch.equal(data.inputs(torch.tensor([len(data) - 1]))[0].permute(1, 2, 0).to(torch.int64), pixels)


def test_domainnet_has_its_classes_in_every_domain_or_the_ten_of_generalization_adjustment(
    complete: dict[str, Path], data_command: Callable[..., Outcome]
) -> None:
    benchmark, ten = (
        open_benchmark("DomainNet", data_dir=complete["DomainNet"], options=o) for o in ({}, {"classes": "ten"})
    )
    data, few = benchmark.load("quickdraw"), ten.load("quickdraw")
    assert (data.labels.tolist(), few.labels.tolist()) == (list(range(345)), list(range(10)))
    assert (benchmark.classes[0], benchmark.classes[-1], ten.outputs) == ("The_Eiffel_Tower", "zigzag", 10)
    assert torch.equal(few.inputs(few.labels), data.inputs(torch.tensor([*map(benchmark.classes.index, ten.classes)])))
    assert open_benchmark("DomainNet", options=ten.options) == ten
    assert "must be ten, or empty for all 345, got 'x'" in refusal("DomainNet", None, options={"classes": "x"})
    asked = ("DomainNet", "--data-dir", complete["DomainNet"], "--domains-args", "classes=ten", "--json")
    checked, ready = (data_command(subcommand, *asked) for subcommand in ("check", "prepare"))
    assert json.loads(checked.out)["counts"]["real"] == dict.fromkeys(ten.classes, 1), checked.err
    assert json.loads(ready.out)["examples"]["real"] == 10


NESTINGS = [
    *(("PACS", nesting) for nesting in ("PACS", "pacs", "kfold", "PACS/kfold", "Pacs/KFold")),
    ("VLCS", "vlcs"),
    *(("OfficeHome", nesting) for nesting in ("office_home", "OfficeHome", "OfficeHomeDataset_10072016")),
    ("OfficeHome", "office_home/OfficeHomeDataset_10072016"),
    ("DomainNet", "domain_net"),
    ("DomainNet", "DomainNet"),
    ("TerraIncognita", "terra_incognita"),
]


@pytest.mark.parametrize(("name", "nesting"), NESTINGS)
def test_every_nesting_is_found(trees: dict[str, Path], tmp_path: Path, name: str, nesting: str) -> None:
    (tmp_path / nesting).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / nesting).symlink_to(trees[name])
    assert open_benchmark(name, data_dir=tmp_path).options["data_dir"] == str(tmp_path)


SPELLINGS = [
    ("PACS", ["A", "C", "P", "S"]),
    ("PACS", ["Art Painting", "c", "PHOTO", "Sketch"]),
    ("PACS", ["art-painting", "cartoon", "photo", "sketch"]),
    ("PACS", ["Art", "cartoon", "photo", "sketch"]),
    ("VLCS", ["C", "L", "S", "V"]),
    ("VLCS", ["CALTECH", "LABELME", "SUN", "PASCAL"]),
    ("OfficeHome", ["A", "C", "P", "R"]),
    ("OfficeHome", ["art", "clipart", "product", "RealWorld"]),
    ("OfficeHome", ["Art", "Clipart", "Product", "real_world"]),
    ("DomainNet", ["clip", "info", "paint", "quick", "real", "sketch"]),
    ("TerraIncognita", ["L100", "L38", "L43", "L46"]),
    ("TerraIncognita", ["Location 100", "location-38", "43", "loc_46"]),
]


@pytest.mark.parametrize(("name", "spellings"), SPELLINGS)
def test_every_spelling_of_a_domain_is_found(
    trees: dict[str, Path], tmp_path: Path, name: str, spellings: list[str]
) -> None:
    for domain, spelling in zip(LAYOUTS[name].domains, spellings, strict=True):
        (tmp_path / spelling).symlink_to(trees[name] / domain)
    benchmark = open_benchmark(name, data_dir=tmp_path)
    assert benchmark.domains == tuple(LAYOUTS[name].domains)
    first = open_benchmark(name, data_dir=trees[name])
    assert benchmark.load(benchmark.domains[-1]).digest == first.load(first.domains[-1]).digest


def test_what_does_not_belong_is_ignored_and_classes_may_be_spelled_otherwise(copy: Path) -> None:
    before = open_benchmark("VLCS", data_dir=copy).load("SUN09").digest
    (copy / "splits").mkdir()
    (copy / "__MACOSX" / "SUN").mkdir(parents=True)
    (copy / "SUN09" / "list.txt").write_text("bird/a.jpg 0")
    write_image(copy / "SUN09" / "cat" / "a.jpg", 7000)
    write_image(copy / "SUN09" / "dog" / ".thumbnails" / "a.jpg", 7001)
    write_image(copy / "SUN09" / "dog" / "._hidden.jpg", 7002)
    (copy / "SUN09" / "dog" / "Thumbs.db").write_bytes(b"thumbs")
    (copy / "SUN09" / "dog").rename(copy / "SUN09" / "Dog ")
    assert open_benchmark("VLCS", data_dir=copy).load("SUN09").digest == before


def test_links_to_images_classes_and_domains_are_followed_and_one_back_does_not_trap(
    copy: Path, tmp_path: Path
) -> None:
    before = open_benchmark("VLCS", data_dir=copy).load("SUN09").digest
    for path in (copy / "SUN09" / "dog" / "pic_000.jpg", copy / "SUN09" / "dog", copy / "SUN09"):
        moved = tmp_path / f"moved-{path.name}"
        path.rename(moved)
        path.symlink_to(moved)
    (copy / "SUN09" / "dog" / "loop").symlink_to(copy / "SUN09" / "dog")
    assert open_benchmark("VLCS", data_dir=copy).load("SUN09").digest == before


# -- The older release of VLCS, and OfficeHome in parts ----------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_the_older_release_of_vlcs_is_read_whole(tmp_path: Path, full: bool) -> None:
    number = 0
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for part in ("train", "crossval", "test"):
            for label in range(5):
                path = tmp_path / "VLCS" / domain / part / str(label) / "img.jpg"
                write_image(path, number)
                number += 1
                if full:
                    twin = tmp_path / "VLCS" / domain / "full" / str(label) / f"{part}.jpg"
                    twin.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, twin)
    benchmark = open_benchmark("VLCS", data_dir=tmp_path)
    for domain in benchmark.domains:
        data = benchmark.load(domain)
        assert data.labels.tolist() == [label for label in range(5) for _ in range(3)]
        assert len(torch.unique(data.inputs(torch.arange(15)).flatten(1), dim=0)) == 15, "no image is read twice"


def test_an_incomplete_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    write_tree(tmp_path, [f"{domain}/train" for domain in "CLSV"], dict.fromkeys("01234", 1))
    assert "domain 'Caltech101' lacks class 'bird'" in refusal("VLCS", tmp_path)


def test_officehome_in_train_and_val_is_read_whole(complete: dict[str, Path], tmp_path: Path) -> None:
    for domain in LAYOUTS["OfficeHome"].domains:
        for part in ("train", "val"):
            (tmp_path / domain).mkdir(exist_ok=True)
            (tmp_path / domain / part).symlink_to(complete["OfficeHome"] / domain)
    assert open_benchmark("OfficeHome", data_dir=tmp_path).load("Art").labels.bincount().tolist() == [4] * 65


# -- Wrong -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for name, reason in (("nowhere", "No such file"), ("file", "Not a directory")):
        message = refusal("PACS", tmp_path / name)
        assert message.startswith(f"data folder {tmp_path / name} cannot be read: {reason}")


def test_one_folder_too_high_and_too_low_are_refused_with_what_is_there(copy: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    (outer / "data").mkdir(parents=True)
    (outer / "data" / "copy").symlink_to(copy)
    message = refusal("VLCS", outer)
    assert message.startswith(f"VLCS in {outer}: no domain 'Caltech101', 'LabelMe', 'SUN09', 'VOC2007', found data; ")
    assert f"expected {outer}/VLCS/{{Caltech101,LabelMe,SUN09,VOC2007}}/{{bird,car,chair,dog,person}}/*.jpg" in message
    assert "found bird, car, chair, dog, person; expected" in refusal("VLCS", copy / "SUN09")
    (tmp_path / "empty").mkdir()
    assert "found nothing; expected" in refusal("VLCS", tmp_path / "empty")


def test_a_missing_domain_and_a_missing_class_are_named(copy: Path) -> None:
    shutil.rmtree(copy / "LabelMe" / "dog")
    message = refusal("VLCS", copy)
    assert "domain 'LabelMe' lacks class 'dog'" in message
    assert "classes found: bird, car, chair, person" in message
    shutil.rmtree(copy / "SUN09")
    assert f"VLCS in {copy}: no domain 'SUN09', found Caltech101, LabelMe, VOC2007; expected" in refusal("VLCS", copy)


def test_an_empty_class_is_named(copy: Path) -> None:
    for file in (copy / "VOC2007" / "car").iterdir():
        file.rename(file.with_suffix(".txt"))
    assert f"domain 'VOC2007', class 'car': {copy / 'VOC2007' / 'car'} holds no image" in refusal("VLCS", copy)


@pytest.mark.parametrize(("one", "other", "name"), [("SUN09", "SUN", "SUN09"), ("SUN09/dog", "SUN09/3", "dog")])
def test_a_domain_or_a_class_that_is_there_twice_is_named(copy: Path, one: str, other: str, name: str) -> None:
    shutil.copytree(copy / one, copy / other)
    first, second = sorted([copy / one, copy / other])
    assert refusal("VLCS", copy) == f"{name!r} is there more than once: {first} and {second}; keep one"


# -- Absent ------------------------------------------------------------------------------------------------------------


def test_absent_without_a_copy_on_the_hub(tmp_path: Path) -> None:
    lines = refusal("VLCS", None, cache_dir=tmp_path).splitlines()
    assert lines[0] == "VLCS is not there and cannot be had (the hub has no copy of it). Ways to get it:"
    assert "--data-dir ROOT, or FEDHESS_DATA=ROOT" in lines[1]
    assert lines[2] == "  2. get it by hand: Fang et al. 2013; DomainBed's download script fetches it"


@pytest.mark.parametrize("name", ["OfficeHome", "PACS"])
def test_absent_without_a_network(tmp_path: Path, name: str) -> None:
    lines = refusal(name, None, cache_dir=tmp_path, require_real=True).splitlines()
    assert lines[0].startswith(f"{name} is not there and cannot be had (HF_HUB_OFFLINE is set)")
    assert f"python -m fedhess.data prepare {name}" in lines[2]
    assert lines[3] == f"  3. copy {tmp_path / name} from a machine where that has been done"


def test_domainnet_is_never_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("fedhess.domains.images.release.why_unreachable", lambda _: pytest.fail("the hub was asked"))
    assert "(18.5 GB are not downloaded unasked)" in refusal("DomainNet", None, cache_dir=tmp_path)


def test_an_environment_folder_and_the_cache_are_looked_at(
    complete: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "VLCS").symlink_to(complete["VLCS"])
    assert open_benchmark("VLCS", cache_dir=tmp_path / "cache").options["data_dir"] == str(complete["VLCS"])
    (tmp_path / "env").mkdir()
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path / "env"))
    assert open_benchmark("VLCS", cache_dir=tmp_path / "cache").options["data_dir"] == str(complete["VLCS"])
    (tmp_path / "env" / "VLCS").symlink_to(complete["VLCS"])
    assert open_benchmark("VLCS", cache_dir=tmp_path / "other").options["data_dir"] == str(tmp_path / "env")


# -- PACS and its stand-in ---------------------------------------------------------------------------------------------


def test_without_data_iconpacs_stands_in_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path))
    messages: list[str] = []
    benchmark = open_benchmark("PACS", notify=messages.append)
    assert (benchmark.title, benchmark.default_model) == ("IconPACS (stand-in for PACS)", "lite0-features")
    assert messages == [
        "PACS cannot be had (HF_HUB_OFFLINE is set): IconPACS stands in for it. Its results say nothing about PACS"
    ]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert (again, again.title) == (benchmark, benchmark.title)


def test_a_folder_given_or_in_part_is_never_replaced_by_a_stand_in(
    complete_pacs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"PACS in {tmp_path}: no domain 'art_painting', " in refusal("PACS", tmp_path)
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path))
    (tmp_path / "sketch").symlink_to(complete_pacs / "sketch")
    assert "no domain 'art_painting', 'cartoon', 'photo', found sketch" in refusal("PACS", None)
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path / "nowhere"))
    assert "cannot be read" in refusal("PACS", None)


def test_with_a_network_that_does_not_answer_the_decision_takes_what_it_may(silent_server: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment["HF_ENDPOINT"] = silent_server
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True, check=True)
    title, seconds = done.stdout.strip().split("|")
    assert title == "IconPACS (stand-in for PACS)"
    assert float(seconds) < 5, "it may take one"
    assert time.monotonic() - start < 30, "a thread that still waits must not hold the process back"
    assert "cannot be reached" in done.stderr or "no answer" in done.stderr
