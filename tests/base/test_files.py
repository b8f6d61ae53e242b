import os
import time
from pathlib import Path

import pytest
import torch
from forked import fork, wait

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, cached_tensor, write_atomically


def test_the_variable_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    assert cache_directory(tmp_path / "given") == tmp_path / "given"
    assert (tmp_path / "mine").is_dir()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be created .* point FEDHESS_CACHE at a writable directory"):
        cache_directory(tmp_path / "file" / "cache")
    with pytest.raises(UsageError, match=r"cannot be written .* free the disk or set FEDHESS_CACHE"):
        write_atomically(tmp_path / "file" / "below", lambda file: file.write(b""))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    assert path.read_bytes() == b"old"


def test_a_tensor_is_computed_once_and_again_when_its_file_is_damaged(tmp_path: Path):
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.arange(1000)

    path = tmp_path / "deep" / "tensor.npy"
    assert torch.equal(cached_tensor(path, compute), torch.arange(1000))
    assert torch.equal(cached_tensor(path, compute), torch.arange(1000))
    assert len(calls) == 1
    for damage in (b"", path.read_bytes()[:300], b"garbage that is no npy"):
        path.write_bytes(damage)
        assert torch.equal(cached_tensor(path, compute), torch.arange(1000))
    assert len(calls) == 4


def test_two_processes_that_want_a_tensor_compute_it_once(tmp_path: Path) -> None:
    def compute() -> torch.Tensor:
        (tmp_path / f"computed by {os.getpid()}").touch()
        time.sleep(0.2)
        return torch.arange(3)

    children = [fork(lambda: cached_tensor(tmp_path / "deep" / "tensor.npy", compute)) for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    assert len(list(tmp_path.glob("computed by *"))) == 1
