"""A machine that holds one domain opens the benchmark with it alone; one that holds none opens it without a look."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fedhess.config import RunConfig
from fedhess.domains import open_benchmark
from fedhess.domains.pacs import CLASSES
from fedhess.errors import UsageError
from fedhess.local_data import build_model, forget_data, local_domain


@pytest.fixture
def only_sketch(tmp_path: Path) -> Path:
    """A folder with the sketches of PACS and nothing else, a few images a class."""
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "PACS" / "kfold" / "sketch" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (227, 227), (20 * label, 40 * number, 0)).save(folder / f"{number}.png")
    return tmp_path


def pacs(data_dir: Path | None, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "domains": "PACS",
        "sources": ("art_painting", "cartoon", "photo"),
        "targets": ("sketch",),
        "model": "lite0",
        "pretrained": False,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    return RunConfig.checked(settings | changes)


def test_a_node_needs_no_domain_but_its_own(only_sketch: Path) -> None:
    with pytest.raises(UsageError, match="is incomplete: domain 'art_painting', 'cartoon', 'photo' is missing"):
        open_benchmark("PACS", data_dir=only_sketch)
    forget_data()
    data = local_domain(pacs(only_sketch), domain="sketch", role="target")
    inputs, labels = data.batch(torch.arange(21))
    assert (tuple(inputs.shape), labels.bincount().tolist()) == ((21, 3, 224, 224), [3] * 7)


def test_a_server_needs_no_data_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDHESS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    forget_data()
    assert build_model(pacs(None)).head.out_features == 7
    for name in ("ColoredMNIST", "RotatedMNIST", "PACS", "IconPACS", "OfficeHome", "DomainNet"):
        benchmark = open_benchmark(name, held=())
        assert (benchmark.name, benchmark.stand_in_for) == (name, None)


def test_a_node_never_trains_on_a_stand_in_in_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path))
    (tmp_path / "PACS").mkdir()
    forget_data()
    with pytest.raises(UsageError, match=r"no domain 'photo' of PACS in .*, found none; expected .*PACS"):
        local_domain(pacs(None), domain="photo", role="source")


def test_a_domain_that_is_not_held_cannot_be_loaded(only_sketch: Path) -> None:
    with pytest.raises(UsageError, match=r"no domain 'photo' of PACS in .*, found sketch; expected"):
        open_benchmark("PACS", data_dir=only_sketch, held=("photo",))
