import time
from pathlib import Path

import pytest
from torchvision.datasets import MNIST

from fedhess.base.errors import UsageError
from fedhess.domains import download, open_benchmark
from fedhess.domains.digits.mnist import FILES, RAW, find_mnist, locate_mnist, prepare_mnist, read_mnist
from fedhess.domains.opening import Opening


def opening(data_dir: Path | None = None, cache_dir: Path | None = None) -> Opening:
    return Opening("ColoredMNIST", data_dir=data_dir, cache_dir=cache_dir)


def linked(mnist_root: Path, root: Path) -> Path:
    """Links to the files, one of which is damaged."""
    (root / RAW).mkdir(parents=True)
    for name in FILES:
        (root / RAW / name).symlink_to(mnist_root / RAW / name)
    damaged = root / RAW / "train-labels-idx1-ubyte"
    damaged.unlink()
    damaged.write_bytes(b"short")
    return damaged


def test_the_real_files_are_read(mnist_root: Path):
    images, digits = read_mnist(find_mnist(opening(mnist_root)))
    assert images.shape == (60000, 28, 28)
    assert digits[:5].tolist() == [5, 0, 4, 1, 9]
    assert digits.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("below", ["", "MNIST"])
def test_root_or_its_mnist_folder_may_be_given(mnist_root: Path, below: str):
    assert find_mnist(opening(mnist_root / below)) == mnist_root


def test_the_environment_and_the_cache_are_looked_at(mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mnist").symlink_to(mnist_root)
    assert find_mnist(opening(cache_dir=tmp_path)) == tmp_path / "mnist"
    monkeypatch.setenv("FEDHESS_DATA", str(mnist_root))
    assert find_mnist(opening(cache_dir=tmp_path / "other")) == mnist_root


def test_a_given_folder_without_mnist_is_refused_with_advice(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        open_benchmark("ColoredMNIST", data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no MNIST in {tmp_path}: expected ROOT/MNIST/raw/ with the unpacked files")
    assert "tools/fetch_mnist.py" in message
    assert all(name in message for name in FILES)


def test_files_of_another_size_or_content_are_named(mnist_root: Path, tmp_path: Path):
    linked(mnist_root, tmp_path)
    with pytest.raises(UsageError, match="train-labels-idx1-ubyte is damaged: expected 60008 bytes, got 5"):
        find_mnist(opening(tmp_path))
    for name, size in FILES.items():
        (tmp_path / RAW / name).unlink()
        (tmp_path / RAW / name).write_bytes(bytes(size))
    with pytest.raises(UsageError, match="the files are not MNIST's"):
        open_benchmark("ColoredMNIST", data_dir=tmp_path).load("grey")


def test_without_a_network_it_fails_with_advice_and_in_time(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MNIST, "mirrors", [f"{silent_server}/", f"{silent_server}/again/"])
    monkeypatch.setattr(download, "DECISION_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot be downloaded \(no answer within 1 s\): expected ROOT/MNIST/raw/"):
        open_benchmark("ColoredMNIST", cache_dir=tmp_path)
    assert time.monotonic() - start < 5


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not the labels")
    monkeypatch.setattr(MNIST, "mirrors", [f"{tmp_path.as_uri()}/"])
    with pytest.raises(UsageError, match="MNIST is not there and cannot be downloaded"):
        open_benchmark("ColoredMNIST", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_files_of_the_cache_are_downloaded_anew(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def downloaded(root: str, *, download: bool) -> None:
        assert download
        (Path(root) / RAW).mkdir(parents=True)
        for name in FILES:
            (Path(root) / RAW / name).symlink_to(mnist_root / RAW / name)

    damaged = linked(mnist_root, tmp_path / "mnist")
    monkeypatch.setattr("fedhess.domains.digits.mnist.MNIST", downloaded)
    monkeypatch.setattr("fedhess.domains.digits.mnist.why_no_answer", lambda urls: "", raising=True)
    monkeypatch.setattr(downloaded, "mirrors", [], raising=False)
    assert prepare_mnist(opening(cache_dir=tmp_path)) == ""
    assert damaged.stat().st_size == FILES[damaged.name]
    assert locate_mnist(opening(cache_dir=tmp_path)) == tmp_path / "mnist"
