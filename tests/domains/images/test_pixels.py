"""The file of decoded images: filled once, by whoever comes, and never trusted blindly."""

import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import fork, wait

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.images import pixels, release
from fedhess.domains.images.image_files import ImageDomain
from fedhess.domains.images.pixels import decode_once, require_room, store_bytes, store_path

SIDE, COUNT = 32, 21


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SIDE", SIDE)


@pytest.fixture
def photo(complete_pacs: Path) -> ImageDomain:
    return open_benchmark("PACS", data_dir=complete_pacs).load("photo")


def everything(data: object) -> torch.Tensor:
    return data.inputs(torch.arange(COUNT))


def count_decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    real = ImageDomain.decode
    monkeypatch.setattr(ImageDomain, "decode", lambda self, index: decoded.append(index) or real(self, index))
    return decoded


def start_filling(photo: ImageDomain, cache: Path, kill_at: str = "never") -> int:
    def notify(message: str) -> None:
        if message.startswith(f"decoding photo: {kill_at} "):
            os.kill(os.getpid(), signal.SIGKILL)

    return fork(lambda: decode_once(photo, cache_dir=cache, notify=notify))


def test_stored_images_are_the_decoded_ones_under_the_same_digest(photo: ImageDomain, tmp_path: Path):
    photo.groups = torch.arange(COUNT) - 3
    stored = decode_once(photo, cache_dir=tmp_path)
    assert torch.equal(everything(stored), everything(photo))
    some = torch.tensor([20, 0, 5, 5])
    assert torch.equal(stored.inputs(some), photo.inputs(some))
    assert stored.inputs(torch.tensor([], dtype=torch.int64)).shape == (0, 3, SIDE, SIDE)
    assert (stored.name, stored.digest, stored.skipped, len(stored)) == ("photo", photo.digest, 0, COUNT)
    assert torch.equal(stored.labels, photo.labels)
    assert stored.aspects is photo.aspects
    assert stored.groups is photo.groups
    assert stored.path.stat().st_size == store_bytes(photo)


def test_images_are_decoded_once_and_the_size_is_said_first(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded, messages = count_decodings(monkeypatch), []
    monkeypatch.setattr(pixels, "AT_ONCE", 10)
    decode_once(photo, cache_dir=tmp_path, notify=messages.append)
    assert messages[0].startswith("21 images decoded to 32 x 32 pixels take 6.86e-05 GB in ")
    assert messages[0].endswith(" GB free")
    assert messages[1:] == [f"decoding photo: {done} of 21 images" for done in (0, 10, 20)]
    assert sorted(decoded) == list(range(COUNT))
    messages.clear()
    again = decode_once(photo, cache_dir=tmp_path, notify=messages.append)
    assert torch.equal(everything(again), everything(photo))
    assert messages == []
    assert len(decoded) == 2 * COUNT, "the comparison decodes, the store does not"


def test_other_images_another_size_and_another_decoder_get_another_file(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = [photo._files[number] for number in range(COUNT)]
    paths = {store_path(photo, tmp_path)}
    paths.add(store_path(ImageDomain("photo", files, digest="other", side=SIDE), tmp_path))
    paths.add(store_path(ImageDomain("photo", files, digest=photo.digest, side=SIDE + 1), tmp_path))
    monkeypatch.setattr(pixels, "DECODING", "another")
    paths.add(store_path(photo, tmp_path))
    monkeypatch.setattr(pixels.PIL, "__version__", "another")
    paths.add(store_path(photo, tmp_path))
    assert len(paths) == 5


def test_a_filling_that_was_killed_goes_on_where_it_stopped(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pixels, "AT_ONCE", 4)
    assert wait(start_filling(photo, tmp_path, kill_at="12")) == -signal.SIGKILL
    decoded = count_decodings(monkeypatch)
    stored = decode_once(photo, cache_dir=tmp_path)
    assert len(decoded) == COUNT - 12
    assert torch.equal(everything(stored), everything(photo))


def test_two_processes_fill_one_file_at_the_same_time(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pixels, "AT_ONCE", 4)
    assert [wait(child) for child in [start_filling(photo, tmp_path) for _ in range(2)]] == [0, 0]
    messages: list[str] = []
    stored = decode_once(photo, cache_dir=tmp_path, notify=messages.append)
    assert messages == []
    assert torch.equal(everything(stored), everything(photo))


def damage(path: Path, how: str) -> int:
    """Damage a file of images and return how many of them it hits."""
    content = bytearray(path.read_bytes())
    size = 3 * SIDE * SIDE
    if how == "cut short":
        content = content[: -2 * size - 1]
    elif how == "zeroed":
        content[4096 + 5 * size : 4096 + 6 * size] = bytes(size)
    elif how == "one bit":
        content[4096 + 7 * size + 100] ^= 1
    elif how == "swapped":
        content[4096 : 4096 + 2 * size] = content[4096 + size : 4096 + 2 * size] + content[4096 : 4096 + size]
    path.write_bytes(content)
    return {"cut short": 3, "zeroed": 1, "one bit": 1, "swapped": 2}[how]


@pytest.mark.parametrize("how", ["cut short", "zeroed", "one bit", "swapped"])
def test_damage_is_noticed_said_and_repaired(
    photo: ImageDomain, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
):
    path = decode_once(photo, cache_dir=tmp_path).path
    hit = damage(path, how)
    stored = decode_once(photo, cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(everything(stored), everything(photo))
    assert f"{path}: {hit} of 21 images read were missing or damaged and have been decoded again" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(everything(decode_once(photo, cache_dir=tmp_path)), everything(photo))
    assert caplog.text == "", "the file itself is whole again"


# -- Room --------------------------------------------------------------------------------------------------------------


def test_a_limit_is_refused_before_anything_is_decoded(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded = count_decodings(monkeypatch)
    with pytest.raises(UsageError, match=r"--image-cache-gb 5e-05: 21 images .* take 6.86e-05 GB; .*--images streamed"):
        decode_once(photo, cache_dir=tmp_path, limit_gb=5e-5)
    assert decoded == []
    assert len(decode_once(photo, cache_dir=tmp_path, limit_gb=1e-4)) == COUNT


def test_a_disk_too_small_is_refused_with_the_ways_out(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage._replace(free=21 * 3 * SIDE * SIDE - 1))
    with pytest.raises(UsageError) as caught:
        decode_once(photo, cache_dir=tmp_path)
    assert "6.45e-05 GB are still to be written" in str(caught.value)
    assert f"{tmp_path} has 6.45e-05 GB free; make room, point FEDHESS_CACHE at a larger disk" in str(caught.value)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage._replace(free=21 * 3 * SIDE * SIDE))
    decode_once(photo, cache_dir=tmp_path)
    with store_path(photo, tmp_path).open("r+b") as file:
        file.write(bytes(4 * 6))
    decoded = count_decodings(monkeypatch)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage._replace(free=6 * 3 * SIDE * SIDE))
    decode_once(photo, cache_dir=tmp_path)
    assert sorted(decoded) == list(range(6)), "images without a checksum are missing"
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert len(decode_once(photo, cache_dir=tmp_path)) == COUNT, "what is there needs no room"


def test_room_is_counted_over_all_domains_and_only_for_images(complete_pacs: Path, tmp_path: Path):
    benchmark = open_benchmark("PACS", data_dir=complete_pacs)
    domains = [benchmark.load(domain) for domain in benchmark.domains]
    messages: list[str] = []
    require_room(domains, cache_dir=tmp_path, notify=messages.append)
    decode_once(domains[0], cache_dir=tmp_path)
    require_room(domains, cache_dir=tmp_path, notify=messages.append)
    assert [message.split(" free")[0].split(";")[0].rpartition(" in ")[0] for message in messages] == [
        "84 images decoded to 32 x 32 pixels take 0.000274 GB"
    ] * 2
    assert "; 0.000258 GB still to be written" in messages[0]
    assert "; 0.000194 GB still to be written" in messages[1]
    with pytest.raises(UsageError, match="--image-cache-gb"):
        require_room(domains, cache_dir=tmp_path, limit_gb=0.0002, notify=messages.append)
    icons = open_benchmark("IconPACS").load("sketch")
    require_room([icons], cache_dir=tmp_path, limit_gb=1e-9, notify=messages.append)
    assert len(messages) == 2


def test_a_disk_that_fills_up_ends_with_a_message(photo: ImageDomain, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UsageError, match=r"photo-\w+\.u8 cannot be written .*--images streamed"):
            decode_once(photo, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_pixels_are_written_before_the_checksum_that_vouches_for_them(
    photo: ImageDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(image: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pixels, "_checksum", stop)
        with pytest.raises(KeyboardInterrupt):
            decode_once(photo, cache_dir=tmp_path)
    content = store_path(photo, tmp_path).read_bytes()
    assert not any(content[:4096])
    assert any(content[4096:])
    decode_once(photo, cache_dir=tmp_path)
    sums = np.fromfile(store_path(photo, tmp_path), np.uint32, count=COUNT)
    assert (sums != 0).all()
