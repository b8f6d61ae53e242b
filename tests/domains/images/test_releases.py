"""The image benchmarks in every layout that they are released in, and in every layout that is wrong."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from image_trees import write_image, write_tree
from PIL import Image

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.images.domain_net import RELEASE as DOMAIN_NET
from fedhess.domains.images.office_home import RELEASE as OFFICE_HOME
from fedhess.domains.images.terra_incognita import RELEASE as TERRA_INCOGNITA
from fedhess.domains.images.vlcs import RELEASE as VLCS

LAYOUTS = {release.name: release.layout for release in (VLCS, OFFICE_HOME, DOMAIN_NET, TERRA_INCOGNITA)}


@pytest.fixture
def vlcs(complete: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(complete["VLCS"], tmp_path / "data"))


def refusal(name: str, root: Path | None, **arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        open_benchmark(name, data_dir=root, **arguments)
    return str(caught.value)


# -- Complete ----------------------------------------------------------------------------------------------------------


SIZES = [("VLCS", 5), ("OfficeHome", 65), ("DomainNet", 345), ("TerraIncognita", 10)]


@pytest.mark.parametrize(("name", "classes"), SIZES)
def test_a_local_copy_is_opened(complete: dict[str, Path], name: str, classes: int) -> None:
    benchmark = open_benchmark(name.upper(), data_dir=complete[name], require_real=True)
    assert (benchmark.title, benchmark.outputs, benchmark.holdout) == (name, classes, 0.2)
    assert (benchmark.input_shape, benchmark.default_model) == ((3, 224, 224), "resnet18")
    assert benchmark.domains == tuple(sorted(benchmark.domains))
    assert [scenario.targets for scenario in benchmark.scenarios] == [(domain,) for domain in benchmark.domains]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark


@pytest.mark.parametrize("name", ["VLCS", "TerraIncognita"])
def test_images_and_labels_are_those_of_the_folders(complete: dict[str, Path], name: str) -> None:
    benchmark = open_benchmark(name, data_dir=complete[name])
    data = benchmark.load(benchmark.domains[1])
    assert data.labels.tolist() == [label for label in range(len(benchmark.classes)) for _ in range(2)]
    last = sorted((complete[name] / benchmark.domains[1] / benchmark.classes[-1]).iterdir())[-1]
    with Image.open(last) as file:
        pixels = torch.tensor(list(file.convert("RGB").resize((224, 224), 2).tobytes())).view(224, 224, 3)
    assert torch.equal(data.inputs(torch.tensor([len(data) - 1]))[0].permute(1, 2, 0).to(torch.int64), pixels)


def test_domainnet_has_its_classes_in_every_domain_or_the_ten_of_generalization_adjustment(
    complete: dict[str, Path],
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


NESTINGS = [
    ("VLCS", "vlcs"),
    ("OfficeHome", "office_home"),
    ("OfficeHome", "OfficeHome"),
    ("OfficeHome", "OfficeHomeDataset_10072016"),
    ("OfficeHome", "office_home/OfficeHomeDataset_10072016"),
    ("DomainNet", "domain_net"),
    ("DomainNet", "DomainNet"),
    ("TerraIncognita", "terra_incognita"),
]


@pytest.mark.parametrize(("name", "nesting"), NESTINGS)
def test_every_nesting_is_found(complete: dict[str, Path], tmp_path: Path, name: str, nesting: str) -> None:
    (tmp_path / nesting).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / nesting).symlink_to(complete[name])
    assert open_benchmark(name, data_dir=tmp_path).options["data_dir"] == str(tmp_path)


SPELLINGS = [
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
    complete: dict[str, Path], tmp_path: Path, name: str, spellings: list[str]
) -> None:
    for domain, spelling in zip(LAYOUTS[name].domains, spellings, strict=True):
        (tmp_path / spelling).symlink_to(complete[name] / domain)
    benchmark = open_benchmark(name, data_dir=tmp_path)
    assert benchmark.domains == tuple(LAYOUTS[name].domains)
    first = open_benchmark(name, data_dir=complete[name])
    assert benchmark.load(benchmark.domains[-1]).digest == first.load(first.domains[-1]).digest


def test_spelled_classes_are_found(complete: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(complete["OfficeHome"], tmp_path / "data")
    (root / "Art" / "Alarm_Clock").rename(root / "Art" / "alarm clock")
    assert open_benchmark("OfficeHome", data_dir=root).load("Art").labels.tolist()[:3] == [0, 0, 1]


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
                    copy = tmp_path / "VLCS" / domain / "full" / str(label) / f"{part}.jpg"
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)
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


def test_a_missing_domain_is_named(vlcs: Path) -> None:
    shutil.rmtree(vlcs / "SUN09")
    message = refusal("VLCS", vlcs)
    assert "VLCS in " in message
    assert "is incomplete: domain 'SUN09' is missing, Caltech101, LabelMe, VOC2007 found" in message


def test_a_missing_class_is_named(vlcs: Path) -> None:
    shutil.rmtree(vlcs / "LabelMe" / "dog")
    message = refusal("VLCS", vlcs)
    assert "domain 'LabelMe' lacks class 'dog'" in message
    assert "classes found: bird, car, chair, person" in message


def test_an_empty_class_is_named(vlcs: Path) -> None:
    for file in (vlcs / "VOC2007" / "car").iterdir():
        file.unlink()
    (vlcs / "VOC2007" / "car" / "readme.txt").write_text("no image")
    assert f"domain 'VOC2007', class 'car': {vlcs / 'VOC2007' / 'car'} holds no image" in refusal("VLCS", vlcs)


def test_a_domain_that_is_there_twice_is_named(vlcs: Path) -> None:
    shutil.copytree(vlcs / "SUN09", vlcs / "SUN")
    assert f"'SUN09' of VLCS is there more than once: {vlcs / 'SUN'} and {vlcs / 'SUN09'}" in refusal("VLCS", vlcs)


def test_a_class_that_is_there_twice_is_named(vlcs: Path) -> None:
    shutil.copytree(vlcs / "SUN09" / "dog", vlcs / "SUN09" / "3")
    assert "domain 'SUN09', class 'dog' is there more than once" in refusal("VLCS", vlcs)


def test_two_copies_are_not_chosen_between(vlcs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(vlcs, root / "VLCS")
    shutil.copytree(vlcs, root / "vlcs")
    message = refusal("VLCS", root)
    assert "VLCS is there more than once" in message
    assert str(root / "VLCS") in message


def test_a_link_beside_the_copy_is_not_a_second_copy(vlcs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(vlcs, root / "VLCS")
    (root / "vlcs").symlink_to(root / "VLCS")
    assert open_benchmark("VLCS", data_dir=root).title == "VLCS"


def test_one_folder_too_high_and_too_low_are_refused(vlcs: Path, tmp_path: Path) -> None:
    (tmp_path / "outer" / "data").mkdir(parents=True)
    (tmp_path / "outer" / "data" / "copy").symlink_to(vlcs)
    message = refusal("VLCS", tmp_path / "outer")
    assert message.startswith(f"no VLCS in {tmp_path / 'outer'}: expected {tmp_path / 'outer'}/VLCS/{{Caltech101,")
    assert message.endswith("found data")
    assert "no VLCS in" in refusal("VLCS", vlcs / "SUN09")


def test_what_does_not_belong_is_ignored(vlcs: Path) -> None:
    before = open_benchmark("VLCS", data_dir=vlcs).load("SUN09").digest
    (vlcs / "splits").mkdir()
    (vlcs / "__MACOSX" / "SUN").mkdir(parents=True)
    (vlcs / "SUN09" / "list.txt").write_text("bird/a.jpg 0")
    write_image(vlcs / "SUN09" / "cat" / "a.jpg", 7000)
    write_image(vlcs / "SUN09" / "dog" / ".thumbnails" / "a.jpg", 7001)
    write_image(vlcs / "SUN09" / "dog" / ".hidden.jpg", 7002)
    assert open_benchmark("VLCS", data_dir=vlcs).load("SUN09").digest == before


def test_a_broken_image_is_named(vlcs: Path) -> None:
    bad = vlcs / "SUN09" / "dog" / "pic_001.png"
    bad.write_bytes(bad.read_bytes()[:60])
    benchmark = open_benchmark("VLCS", data_dir=vlcs)
    with pytest.raises(
        UsageError, match=r"1 of 10 images of domain 'SUN09' cannot be decoded, the first .*pic_001\.png"
    ):
        benchmark.load("SUN09")
    assert len(open_benchmark("VLCS", data_dir=vlcs, skip_bad_images=True).load("SUN09")) == 9


def test_a_link_that_leads_nowhere_is_named(vlcs: Path) -> None:
    (vlcs / "SUN09" / "dog" / "gone.jpg").symlink_to("elsewhere.jpg")
    benchmark = open_benchmark("VLCS", data_dir=vlcs)
    with pytest.raises(UsageError, match=r"gone\.jpg is a link to elsewhere\.jpg, which is not there"):
        benchmark.load("SUN09")


def test_links_to_images_classes_and_domains_are_followed(vlcs: Path, tmp_path: Path) -> None:
    before = open_benchmark("VLCS", data_dir=vlcs).load("SUN09").digest
    for path in (vlcs / "SUN09" / "dog" / "pic_000.jpg", vlcs / "SUN09" / "dog", vlcs / "SUN09"):
        moved = tmp_path / f"moved-{path.name}"
        path.rename(moved)
        path.symlink_to(moved)
    assert open_benchmark("VLCS", data_dir=vlcs).load("SUN09").digest == before


def test_a_link_back_does_not_trap(vlcs: Path) -> None:
    (vlcs / "SUN09" / "dog" / "loop").symlink_to(vlcs / "SUN09" / "dog")
    assert len(open_benchmark("VLCS", data_dir=vlcs).load("SUN09")) == 10


# -- Absent ------------------------------------------------------------------------------------------------------------


def test_absent_without_a_copy_on_the_hub(tmp_path: Path) -> None:
    lines = refusal("VLCS", None, cache_dir=tmp_path).splitlines()
    assert lines[0] == "VLCS is not there and cannot be had (the hub has no copy of it). Ways to get it:"
    assert "--data-dir ROOT, or FEDHESS_DATA=ROOT" in lines[1]
    assert lines[2] == "  2. get it by hand: Fang et al. 2013; DomainBed's download script fetches it"


def test_absent_without_a_network(tmp_path: Path) -> None:
    start = time.monotonic()
    lines = refusal("OfficeHome", None, cache_dir=tmp_path).splitlines()
    assert time.monotonic() - start < 5
    assert lines[0].startswith("OfficeHome is not there and cannot be had (HF_HUB_OFFLINE is set)")
    assert "python -m fedhess.data prepare OfficeHome" in lines[2]
    assert lines[3] == f"  3. copy {tmp_path / 'OfficeHome'} from a machine where that has been done"


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
