import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.images.image_files import ImageDomain, ImageFile, limit_pixels, scan
from fedhess.settings.run_config import MAX_PIXELS


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404 Not Found</html>")
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "header only":
        path.write_bytes(content[:200])
    elif how == "gone":
        path.unlink()
        path.symlink_to("elsewhere")


REASONS = {"empty": "empty file", "text": "no image that Pillow knows", "gone": "No such file or directory"}


@pytest.mark.parametrize("how", ["empty", "text", "cut short", "header only", "gone"])
@pytest.mark.parametrize("name", ["pic_001.jpg", "pic_002.png"])
def test_an_undecodable_image_is_named_before_training(pacs: Path, name: str, how: str):
    bad = pacs / "cartoon" / "house" / name
    damage(bad, how)
    benchmark = open_benchmark("PACS", data_dir=pacs)
    with pytest.raises(UsageError) as caught:
        benchmark.load("cartoon")
    assert "1 of 21 images of domain 'cartoon' cannot be decoded" in str(caught.value)
    assert f"the first {bad} ({REASONS.get(how, '')}" in str(caught.value)
    assert "--skip-bad-images" in str(caught.value)
    assert len(benchmark.load("photo")) == 21  # the others are none the worse
    with pytest.raises(UsageError, match="cannot be decoded"):
        benchmark.identity()


def test_an_image_that_can_be_read_the_next_time_is_good_then(pacs: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(UsageError, match="Input/output error"):
            open_benchmark("PACS", data_dir=pacs).load("photo")
    assert len(open_benchmark("PACS", data_dir=pacs).load("photo")) == 21


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (100, 4), (4, 100)])
def test_a_jpeg_of_few_pixels_is_an_image_like_any_other(pacs: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 0, 0)).save(pacs / "photo" / "dog" / "pic_000.jpg")
    data = open_benchmark("PACS", data_dir=pacs).load("photo")
    assert len(data) == 21
    assert abs(int(data.inputs(torch.tensor([0]))[0, 0].float().mean()) - 200) <= 3


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif"), ("I", "tif"), ("F", "tif")]
)
def test_greyscale_of_more_than_8_bits_is_refused_and_not_cut_off(pacs: Path, mode: str, suffix: str) -> None:
    bad = pacs / "photo" / "dog" / f"deep.{suffix}"
    Image.new(mode, (30, 30), 1000).save(bad)
    benchmark = open_benchmark("PACS", data_dir=pacs)
    reason = f"16-bit or float greyscale, Pillow's mode {mode}; convert it to 8 bits"
    with pytest.raises(UsageError, match=re.escape(f"the first {bad} ({reason})")):
        benchmark.load("photo")
    assert len(open_benchmark("PACS", data_dir=pacs, skip_bad_images=True).load("photo")) == 21


@pytest.mark.parametrize("left", ["", "{", '{"digest": "x", "bad": {}, "aspects": [1.0]}', "[]"])
def test_what_a_power_cut_left_of_a_scan_is_done_again(pacs: Path, tmp_path: Path, left: str) -> None:
    cache = tmp_path / "cache"
    first = open_benchmark("PACS", data_dir=pacs, cache_dir=cache).identity()
    scans = list((cache / "scans").iterdir())
    assert len(scans) == 4
    for file in scans:
        file.write_text(left, encoding="utf-8")
    assert open_benchmark("PACS", data_dir=pacs, cache_dir=cache).identity() == first
    assert all(file.read_text(encoding="utf-8") != left for file in scans)


def test_bad_images_are_left_out_and_counted_when_asked(pacs: Path):
    for name in ("pic_000.jpg", "pic_002.png"):
        damage(pacs / "photo" / "dog" / name, "cut short")
    messages: list[str] = []
    benchmark = open_benchmark("PACS", data_dir=pacs, skip_bad_images=True, notify=messages.append)
    data = benchmark.load("photo")
    assert len(data) == 19
    assert torch.bincount(data.labels).tolist() == [1, 3, 3, 3, 3, 3, 3]
    assert data.inputs(torch.arange(19)).shape == (19, 3, 224, 224)
    assert any("2 of 21 images of domain 'photo' cannot be decoded and are left out" in m for m in messages)
    identity = benchmark.identity()
    assert identity["skipped_images"] == {"art_painting": 0, "cartoon": 0, "photo": 2, "sketch": 0}
    assert identity["counts"]["photo"]["dog"] == 1
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again.identity() == identity
    for path in (pacs / "photo").rglob("pic_*"):
        damage(path, "text")
    with pytest.raises(UsageError, match="21 of 21 images of domain 'photo'"):
        open_benchmark("PACS", data_dir=pacs, skip_bad_images=True).load("photo")


def test_images_of_any_size_and_mode_become_rgb_of_one_size(pacs: Path):
    folder = pacs / "sketch" / "dog"
    Image.new("L", (50, 400), 7).save(folder / "pic_000.jpg")
    Image.new("RGBA", (300, 20), (1, 2, 3, 255)).save(folder / "pic_001.png")
    Image.new("P", (224, 224), 0).save(folder / "pic_002.png")
    data = open_benchmark("PACS", data_dir=pacs).load("sketch")
    images = data.inputs(torch.tensor([0, 2, 1, 3]))
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 224, 224)
    assert abs(int(images[0].float().mean()) - 7) <= 1


def test_images_come_in_the_order_asked_for_and_show_what_the_file_shows(pacs: Path):
    data = open_benchmark("PACS", data_dir=pacs).load("photo")
    batch = data.inputs(torch.tensor([20, 0, 5]))
    for index, image in zip((20, 0, 5), batch, strict=True):
        assert torch.equal(image, data.inputs(torch.tensor([index]))[0])
    with Image.open(pacs / "photo" / "dog" / "pic_000.jpg") as file:
        reference = torch.tensor(list(file.convert("RGB").resize((224, 224), 2).tobytes())).view(224, 224, 3)
    assert torch.equal(batch[1].permute(1, 2, 0).to(torch.int64), reference)
    assert data.inputs(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 224, 224)


def test_files_are_read_once_and_again_when_one_changes(pacs: Path, complete_pacs: Path):
    messages: list[str] = []

    def digest() -> str:
        return open_benchmark("PACS", data_dir=pacs, notify=messages.append).load("photo").digest

    first = digest()
    assert digest() == first
    assert messages == ["checking 21 images of photo"]
    elsewhere = open_benchmark("PACS", data_dir=complete_pacs).load("photo")
    assert elsewhere.digest == first
    changed = pacs / "photo" / "dog" / "pic_000.jpg"
    Image.new("RGB", (227, 227)).save(changed)
    assert digest() != first
    assert len(messages) == 2


def test_files_of_the_same_name_size_and_time_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    digests = []

    def write(tree: str, colour: int) -> None:
        file = tmp_path / tree / "a.bmp"
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(file)
        os.utime(file, (0, 0))

    def note(tree: str) -> None:
        monkeypatch.chdir(tmp_path / tree)
        files = [ImageFile(Path("a.bmp"), "a.bmp", 0)]
        digests.append(scan("a", files, cache_dir=tmp_path / "cache", notify=lambda _: None).digest)

    for colour, tree in enumerate(("one", "two")):
        (tmp_path / tree).mkdir()
        write(tree, colour)
        note(tree)
    write("two", 2)  # in its place
    note("two")
    assert len(set(digests)) == 3


def test_an_image_damaged_during_the_run_is_named(pacs: Path):
    data = open_benchmark("PACS", data_dir=pacs).load("photo")
    damage(pacs / "photo" / "dog" / "pic_001.jpg", "cut short")
    with pytest.raises(UsageError, match=r"pic_001\.jpg can no longer be decoded"):
        data.inputs(torch.tensor([1]))


def test_image_of_too_many_pixels_is_refused(pacs: Path) -> None:
    large = pacs / "sketch" / "dog" / "pic_000.jpg"
    Image.new("1", (400, 300)).save(large.with_suffix(".png"))
    large.unlink()
    try:
        limit_pixels(100_000)
        with pytest.raises(UsageError, match=r"pic_000.png \(Image size \(120000 pixels\) .*--max-pixels"):
            open_benchmark("PACS", data_dir=pacs).load("sketch")
        limit_pixels(120_000)
        assert len(open_benchmark("PACS", data_dir=pacs).load("sketch"))
    finally:
        limit_pixels(MAX_PIXELS)


def test_a_small_file_that_claims_to_be_large_is_refused_by_default(tmp_path: Path) -> None:
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == MAX_PIXELS == 50_000_000
    Image.new("1", (10_000, 5_001)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 20_000
    with pytest.raises(UsageError, match="exceeds limit of 50000000 pixels"):
        ImageDomain("a", [ImageFile(tmp_path / "bomb.png", "a", 0)], digest="", side=8).decode(0)
