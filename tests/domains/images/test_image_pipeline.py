"""Image files from the disk to a trained model: the real command on a small tree of real files."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedhess.base.seeds import batch_indices, seeded_generator
from fedhess.domains import open_benchmark
from fedhess.domains.images import release
from fedhess.domains.images.image_files import ImageDomain
from fedhess.domains.images.pixels import StoredImages
from fedhess.federation.client import memory
from fedhess.federation.client.augmentation import augment
from fedhess.federation.client.batches import round_batch
from fedhess.models import MODELS, prepare_inputs
from fedhess.models.prepared import local_domain
from fedhess.settings.run_config import RunConfig

SHORT = ["--model", "tiny", "--augment", "domainbed", "--strategy", "erm", "--target", "sketch", "--trials", 1]
SHORT += ["--rounds", 2, "--local-steps", 2, "--batch-size", 5]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SIDE", 32)
    monkeypatch.setitem(MODELS, "tiny", "pictures:create_tiny")
    memory.MEMORY.clear()


def config(root: Path, **changes: Any) -> RunConfig:
    options = open_benchmark("PACS", data_dir=root).options
    settings = {"domains": "PACS", "domains_options": options, "sources": ("photo", "cartoon"), "targets": ("sketch",)}
    return RunConfig.checked(settings | {"model": "tiny", "batch_size": 5, "augment": "domainbed"} | changes)


def rows(job: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (job / "sketch/0/rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_cached_and_streamed_images_train_the_same_model(
    command: Callable[..., Any], complete_pacs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    cached = command(*SHORT, "--data-dir", complete_pacs, "--out", tmp_path / "cached")
    assert cached.status == 0, cached.err
    assert "84 images decoded to 32 x 32 pixels take 0.000274 GB in" in cached.out
    assert "model       tiny, augmentation domainbed\n" in cached.out
    files = list((tmp_path / "cache" / "pixels").iterdir())
    assert len(files) == 4
    again = command(*SHORT, "--data-dir", complete_pacs, "--out", tmp_path / "again")
    assert "decoded to" not in again.out
    for file in files:
        file.unlink()
    memory.MEMORY.clear()
    streamed = command(*SHORT, "--data-dir", complete_pacs, "--images", "streamed", "--out", tmp_path / "streamed")
    assert streamed.status == 0, streamed.err
    assert "images decoded whenever used\n" in streamed.out
    assert list((tmp_path / "cache" / "pixels").iterdir()) == []
    assert rows(tmp_path / "cached") == rows(tmp_path / "again") == rows(tmp_path / "streamed")
    settings = json.loads((tmp_path / "streamed" / "config.json").read_text())["settings"]
    assert (settings["augment"], settings["images"]) == ("domainbed", "streamed")


def test_too_little_room_ends_with_status_2_before_training(
    command: Callable[..., Any], complete_pacs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    outcome = command(*SHORT, "--data-dir", complete_pacs, "--image-cache-gb", 0.0001, "--out", tmp_path / "job")
    assert outcome.status == 2
    assert "--image-cache-gb 0.0001: 84 images decoded" in outcome.err
    assert not list((tmp_path / "cache").glob("pixels/*"))


def test_embeddings_are_augmented_by_nobody(command: Callable[..., Any], complete_pacs: Path):
    outcome = command("--data-dir", complete_pacs, "--model", "lite0-features", "--augment", "domainbed")
    assert outcome.status == 2
    assert "--augment domainbed: expected RGB images (3, H, W), and lite0-features gets" in outcome.err


def test_a_crop_has_the_shape_that_it_would_have_on_the_file(pacs: Path):
    for number, path in enumerate(sorted((pacs / "photo").rglob("pic_*"))):
        Image.new("RGB", (100 + 20 * number, 150), (9 * number, 80, 200)).save(path)
    settings = config(pacs, seed=3)
    for images in ("cached", "streamed"):
        data = local_domain(settings.model_copy(update={"images": images}), domain="photo", role="source")
        assert isinstance(data.data, StoredImages if images == "cached" else ImageDomain)
        chosen = batch_indices(data.train_size, batch_size=5, step=2, key=(3, "photo", 0))
        aspects = data.train_aspects(chosen)
        numbers = data.train_indices[chosen]
        assert torch.allclose(aspects, (100 + 20 * numbers.double()) / 150)
        inputs, _ = round_batch(data, settings, step=2)
        generator = seeded_generator(3, "photo", 0, "augmentation", 2)
        assert torch.equal(inputs, augment(data.data.inputs(numbers), generator=generator, aspects=aspects))
        generator = seeded_generator(3, "photo", 0, "augmentation", 2)
        assert not torch.equal(inputs, augment(data.data.inputs(numbers), generator=generator))


def test_frozen_features_keep_no_pixels(complete_pacs: Path, tmp_path: Path):
    photo = open_benchmark("PACS", data_dir=complete_pacs).load("photo")
    prepare_inputs("lite0-features", photo, cache_dir=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lite0"]
    assert prepare_inputs("resnet18", photo, images="streamed", cache_dir=tmp_path) is photo
    assert isinstance(prepare_inputs("resnet18", photo, cache_dir=tmp_path), StoredImages)


def test_batches_are_read_ahead_in_another_thread(complete_pacs: Path, monkeypatch: pytest.MonkeyPatch):
    readers: list[str] = []
    real = StoredImages.inputs

    def noted(self: StoredImages, indices: torch.Tensor) -> torch.Tensor:
        readers.append(threading.current_thread().name)
        return real(self, indices)

    monkeypatch.setattr(StoredImages, "inputs", noted)
    data = local_domain(config(complete_pacs), domain="photo", role="source")
    parts = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3])]
    batches = list(data.batches(parts))
    assert len(readers) == 3
    assert all(name.startswith("fedhess-reader") for name in readers)
    assert torch.equal(batches[2][1], data.data.labels[3:4])
    data.batch(parts[0])
    assert not readers[3].startswith("fedhess-reader"), "one alone is read at once"
