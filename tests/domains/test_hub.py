from pathlib import Path

import datasets
import pytest
import torch

from fedhess.domains import open_benchmark, pacs
from fedhess.domains.hub import fetch, why_unreachable
from fedhess.domains.iconpacs import CLASSES


@pytest.fixture(scope="module")
def hub_copy(complete_pacs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with the columns of flwrlabs/pacs, as parquet files, which `load_dataset` reads as from the hub."""
    files = sorted(complete_pacs.rglob("pic_*"))
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "domain": [file.parts[-3] for file in files],
        "label": [CLASSES.index(file.parts[-2]) for file in files],
    }
    features = datasets.Features(
        image=datasets.Image(), domain=datasets.Value("string"), label=datasets.ClassLabel(names=list(CLASSES))
    )
    root = tmp_path_factory.mktemp("hub") / "pacs"
    (root / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    return root


@pytest.fixture
def own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.usefixtures("own_hub_cache")
def test_a_download_becomes_a_local_copy_with_the_same_images(hub_copy: Path, complete_pacs: Path, tmp_path: Path):
    messages: list[str] = []
    assert fetch(str(hub_copy), tmp_path / "PACS", notify=messages.append) == ""
    fetched, original = (open_benchmark("PACS", data_dir=root) for root in (tmp_path / "PACS", complete_pacs))
    for domain in original.domains:
        one, other = fetched.load(domain), original.load(domain)
        assert torch.equal(one.labels, other.labels)
        everything = torch.arange(len(one))
        assert torch.equal(one.inputs(everything), other.inputs(everything))
    assert {message.partition(": ")[2] for message in messages[1:]} == {f"{d}, 21 images" for d in original.domains}


@pytest.mark.usefixtures("own_hub_cache")
def test_pacs_is_downloaded_once_and_then_opened_from_the_cache(
    hub_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    monkeypatch.setattr(pacs, "REPOSITORY", str(hub_copy))
    monkeypatch.setattr(pacs, "why_unreachable", lambda repository: asked.append(repository) or "")
    first = open_benchmark("PACS", cache_dir=tmp_path / "cache", require_real=True)
    again = open_benchmark("PACS", cache_dir=tmp_path / "cache")
    assert first.title == again.title == "PACS"
    assert first.identity() == again.identity()
    assert asked == [str(hub_copy)]


@pytest.mark.usefixtures("own_hub_cache")
def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path: Path):
    (tmp_path / "broken" / "data").mkdir(parents=True)
    (tmp_path / "broken" / "data" / "train.parquet").write_bytes(b"not parquet")
    reason = fetch(str(tmp_path / "broken"), tmp_path / "out" / "PACS", notify=lambda message: None)
    assert reason.startswith(f"the download of {tmp_path / 'broken'} failed: ")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("own_hub_cache")
def test_a_failed_download_ends_in_the_stand_in_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pacs, "REPOSITORY", str(tmp_path / "absent"))
    monkeypatch.setattr(pacs, "why_unreachable", lambda repository: "")
    messages: list[str] = []
    assert open_benchmark("PACS", cache_dir=tmp_path, notify=messages.append).stand_in_for == "PACS"
    assert "the download of" in messages[-1]
    assert "IconPACS stands in for it" in messages[-1]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_means_that_nothing_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "1")
    assert why_unreachable("owner/name") == f"{variable} is set"


@pytest.mark.network
def test_the_hub_has_pacs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert why_unreachable(pacs.REPOSITORY) == ""
