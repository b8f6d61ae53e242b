import shutil
import time
from pathlib import Path

import pytest
from torchvision.datasets import MNIST

from fedhess.base.errors import UsageError
from fedhess.domains import network, open_benchmark
from fedhess.domains.digits import mnist
from fedhess.domains.digits.mnist import FILES, find_mnist, read_mnist
from fedhess.domains.opening import Opening


def test_the_real_files_are_read(mnist_root: Path):
    images, digits = read_mnist(find_mnist(Opening("ColoredMNIST"), mnist_root))
    assert images.shape == (60000, 28, 28)
    assert digits[:5].tolist() == [5, 0, 4, 1, 9]
    assert digits.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("below", ["", "MNIST"])
def test_root_or_its_mnist_folder_may_be_given(mnist_root: Path, below: str):
    assert find_mnist(Opening("ColoredMNIST"), mnist_root / below) == mnist_root


def test_the_environment_and_the_cache_are_looked_at(mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mnist").symlink_to(mnist_root)
    assert find_mnist(Opening("ColoredMNIST", cache_dir=tmp_path), None) == tmp_path / "mnist"
    monkeypatch.setenv("FEDHESS_DATA", str(mnist_root))
    assert find_mnist(Opening("ColoredMNIST", cache_dir=tmp_path / "other"), None) == mnist_root


def test_a_given_folder_without_mnist_is_refused_with_advice(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        open_benchmark("ColoredMNIST", data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no MNIST in {tmp_path}: expected ROOT/MNIST/raw/ with the unpacked files")
    assert "tools/fetch_mnist.py" in message
    assert all(name in message for name in FILES)


def test_a_damaged_file_is_named(mnist_root: Path, tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(mnist_root / "MNIST" / "raw" / name)
    (raw / "train-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").write_bytes(b"short")
    with pytest.raises(UsageError, match="train-labels-idx1-ubyte is damaged: expected 60008 bytes, got 5"):
        find_mnist(Opening("ColoredMNIST"), tmp_path)


def test_without_a_network_it_fails_with_advice_and_in_time(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MNIST, "mirrors", [f"{silent_server}/", f"{silent_server}/again/"])
    monkeypatch.setattr(network, "DECISION_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot be downloaded \(no answer within 1 s\): expected ROOT/MNIST/raw/"):
        open_benchmark("ColoredMNIST", cache_dir=tmp_path)
    assert time.monotonic() - start < 5


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(b"not the labels")
    monkeypatch.setattr(MNIST, "mirrors", [f"{mirror.as_uri()}/"])
    with pytest.raises(UsageError, match="MNIST is not there and cannot be downloaded"):
        open_benchmark("ColoredMNIST", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    shutil.rmtree(mirror)


def test_a_download_completes_what_an_earlier_one_left(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def download(root: str, *, download: bool) -> None:
        assert download
        shutil.copytree(mnist_root / "MNIST", Path(root) / "MNIST")

    monkeypatch.setattr("fedhess.domains.digits.mnist.MNIST", download)
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    name = "t10k-labels-idx1-ubyte"
    shutil.copy(mnist_root / "MNIST" / "raw" / name, raw / name)
    reason = mnist._download(tmp_path / "mnist", Opening("ColoredMNIST"))
    assert reason == ""
    assert len(list(raw.glob("*-ubyte"))) == 4
    assert mnist._complete(tmp_path / "mnist") is not None


def test_files_of_the_right_size_and_the_wrong_content_are_named(tmp_path: Path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, size in FILES.items():
        (folder / name).write_bytes(bytes(size))
    with pytest.raises(UsageError, match="the files are not MNIST's"):
        open_benchmark("ColoredMNIST", data_dir=tmp_path).load("grey")
