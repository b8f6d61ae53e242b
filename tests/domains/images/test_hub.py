"""Downloads from a hub on this machine, over HTTP."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from forked import fork, wait
from hub_server import REPOSITORY, Hub, parquet, serving
from image_trees import write_image

from fedhess.domains import open_benchmark
from fedhess.domains.images import hub
from fedhess.domains.images.hub import fetch, why_unreachable
from fedhess.domains.images.releases import RELEASES

RELEASE = RELEASES["PACS"]
CLASSES = list(RELEASE.layout.classes)


def fetched(root: Path) -> str:
    return fetch(REPOSITORY, root / "PACS", layout=RELEASE.layout, notify=lambda _: None)


def images(root: Path) -> int:
    return len(list((root / "PACS").rglob("*.*g")))


@pytest.fixture(scope="module")
def files(complete_pacs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The images of a local copy in two parquet files, as flwrlabs/pacs has them in one."""
    images = sorted(complete_pacs.rglob("pic_*"))
    rows = [(file.read_bytes(), file.parts[-3], file.parts[-2]) for file in images]
    folder = tmp_path_factory.mktemp("parquet")
    parts = {"data/train-00000-of-00002.parquet": rows[::2], "data/train-00001-of-00002.parquet": rows[1::2]}
    return {name: parquet(folder / "x.parquet", part, CLASSES, None) for name, part in parts.items()}


@pytest.fixture
def running(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with serving(Hub(dict(files))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def test_a_download_becomes_a_local_copy_with_the_same_images(
    running: Hub, complete_pacs: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    (tmp_path / "PACS").mkdir()  # an empty folder is no finished download
    assert fetch(REPOSITORY, tmp_path / "PACS", layout=RELEASE.layout, notify=messages.append) == ""
    fetched, original = (open_benchmark("PACS", data_dir=root) for root in (tmp_path / "PACS", complete_pacs))
    for domain in original.domains:
        pictures = [
            sorted(image.numpy().tobytes() for image in data.inputs(torch.arange(len(data))))
            for data in (fetched.load(domain), original.load(domain))
        ]
        assert len(pictures[0]) == 21
        assert pictures[0] == pictures[1]
        assert torch.equal(fetched.load(domain).labels, original.load(domain).labels)
    dogs = sorted(path.name for path in (tmp_path / "PACS" / "art_painting" / "dog").iterdir())
    assert dogs == ["000_000000.jpg", "000_000001.png", "001_000000.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["PACS"], "nothing is left over"
    record = json.loads((tmp_path / "PACS" / "source.json").read_text())
    assert (record["repository"], record["revision"]) == (REPOSITORY, running.revision)
    assert set(record["sha256"]) == set(running.files)
    assert messages[0].startswith(f"{REPOSITORY}: file 1 of 2, data/train-00000-of-00002.parquet, ")
    assert messages[1] == f"{REPOSITORY}: data/train-00000-of-00002.parquet, 42 images unpacked"


def test_pacs_is_downloaded_once_and_then_opened_from_the_cache(
    running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASES, "PACS", replace(RELEASE, repository=REPOSITORY))
    first = open_benchmark("PACS", cache_dir=tmp_path / "cache", require_real=True)
    again = open_benchmark("PACS", cache_dir=tmp_path / "cache")
    assert first.title == again.title == "PACS"
    assert first.identity() == again.identity()
    assert len(running.asked) == 2


def test_a_new_revision_begins_anew(running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hub._unpack

    def fail(packed: Path, folder: Path, *, prefix: str, **arguments: object) -> int:
        if prefix == "001":
            raise OSError("the disk is full")
        return whole(packed, folder, prefix=prefix, **arguments)

    monkeypatch.setattr(hub, "_unpack", fail)
    assert "the disk is full" in fetched(tmp_path)
    monkeypatch.setattr(hub, "_unpack", whole)
    running.revision = "b" * 40
    assert fetched(tmp_path) == ""
    assert running.asked == list(running.files) * 2
    assert images(tmp_path) == 84


def test_a_file_with_another_checksum_is_refused(running: Hub, tmp_path: Path) -> None:
    running.wrong_checksum = True
    reason = fetched(tmp_path)
    assert "expected sha256 " in reason
    assert "it is deleted, try again" in reason
    assert not list(tmp_path.rglob("*.parquet"))
    assert not (tmp_path / "PACS").exists()


@pytest.mark.parametrize(
    ("domain", "label", "message"),
    [
        ("photo", "../../cat", "a row of domain 'photo', class '../../cat', not of PACS"),
        ("mosaic", "dog", "a row of domain 'mosaic', class 'dog', not of PACS"),
    ],
)
def test_a_row_of_another_kind_ends_it(running: Hub, tmp_path: Path, domain: str, label: str, message: str) -> None:
    image = next(iter((tmp_path / "x.png",)))
    write_image(image, 1)
    running.files = {"a.parquet": parquet(tmp_path / "x.parquet", [(image.read_bytes(), domain, label)], [label], None)}
    reason = fetched(tmp_path / "deep" / "er")
    assert message in reason
    assert not list(tmp_path.rglob("cat"))


def test_too_little_space_is_reported_before_anything_is_downloaded(
    running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    reason = fetched(tmp_path)
    assert f"{tmp_path} has 0.0 GB free, 0.0 GB are needed" in reason
    assert running.asked == []


def test_a_second_process_waits_and_downloads_nothing(running: Hub, tmp_path: Path) -> None:
    messages: list[str] = []
    (tmp_path / ".PACS.partial").mkdir()
    with FileLock(tmp_path / ".PACS.partial" / "lock"):
        arguments = {"layout": RELEASE.layout, "notify": messages.append}
        waiting = threading.Thread(target=fetch, args=(REPOSITORY, tmp_path / "PACS"), kwargs=arguments)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        (tmp_path / "PACS" / "photo").mkdir(parents=True)
    waiting.join(10)
    assert messages == [f"another process downloads to {tmp_path / '.PACS.partial'}: waiting for it"]
    assert running.asked == []


@pytest.mark.parametrize("name", ["OfficeHome", "DomainNet"])
def test_other_copies_of_the_hub_are_laid_out_by_their_own_names(
    running: Hub, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = RELEASES[name]
    few = replace(release.layout, classes=release.layout.classes[:12])
    domains, classes = list(few.domains), sorted(few.classes, key=str.lower)  # DomainNet's copy sorts them otherwise
    write_image(tmp_path / "x.jpg", 5)
    image = (tmp_path / "x.jpg").read_bytes()
    rows = [(image, domain, label) for domain in domains for label in classes]
    labelled = domains if name == "DomainNet" else None  # there the domain is a class label
    half = len(rows) // 2
    running.files = {
        f"data/{split}.parquet": parquet(tmp_path / "x.parquet", part, classes, labelled)
        for split, part in {"train": rows[:half], "test": rows[half:]}.items()
    }
    monkeypatch.setitem(RELEASES, name, replace(release, layout=few, repository=REPOSITORY, unasked=True))
    benchmark = open_benchmark(name, cache_dir=tmp_path / "cache")
    assert benchmark.load(benchmark.domains[-1]).labels.tolist() == list(range(len(classes)))
    assert sorted(path.name for path in (tmp_path / "cache" / name).iterdir() if path.is_dir()) == sorted(domains)


@pytest.mark.parametrize("files", [{"a.parquet": b"not parquet"}, {"a.zip": b"zip"}])
def test_a_failed_download_ends_in_the_stand_in_with_the_reason(
    running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASES, "PACS", replace(RELEASE, repository=REPOSITORY))
    messages: list[str] = []
    assert open_benchmark("PACS", cache_dir=tmp_path, notify=messages.append).stand_in_for == "PACS"
    assert "the download of" in messages[-1]
    assert "IconPACS stands in for it" in messages[-1]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_means_that_nothing_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "1")
    assert why_unreachable("owner/name") == f"{variable} is set"


def test_a_hub_without_the_data_set_says_so(running: Hub) -> None:
    assert "404 Not Found" in why_unreachable("owner/other")


def test_killed_in_the_middle_it_goes_on(running: Hub, tmp_path: Path) -> None:
    """A real process, killed while it downloads; the next one finishes its work."""
    whole = hub._unpack

    def die(packed: Path, folder: Path, *, prefix: str, **arguments: Any) -> int:
        number = whole(packed, folder, prefix=prefix, **arguments)
        if prefix == "001":
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def download() -> None:
        hub._unpack = die  # type: ignore[assignment]
        fetched(tmp_path)

    assert wait(fork(download)) == -signal.SIGKILL
    assert not (tmp_path / "PACS").exists()
    running.asked.clear()
    assert fetched(tmp_path) == ""
    assert running.asked == [], "both files had come whole"
    assert images(tmp_path) == 84


@pytest.mark.network
@pytest.mark.parametrize("name", ["PACS", "OfficeHome", "DomainNet"])
def test_the_hub_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert why_unreachable(RELEASES[name].repository) == ""
