"""SVHN in its real format, small."""

import functools
import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matlab_files import matrix, write

from fedhess.domains import open_benchmark
from fedhess.domains.digits import digit_collections, svhn
from fedhess.domains.digits.svhn import fetch_svhn, read_svhn


def silent(message: str) -> None:
    del message


@pytest.fixture
def house_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files in SVHN's format, and their checksums as if they were SVHN's."""
    (tmp_path / "SVHN").mkdir()
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 6), ("test", 4)):
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        pixels[:, :, :, 0] = np.array([255, 0, 0], dtype=np.uint8)
        labels = (np.arange(count, dtype=np.uint8) + 7).reshape(-1, 1)  # 10 stands for 0
        path = write(tmp_path / "SVHN" / f"{part}_32x32.mat", matrix("X", pixels), matrix("y", labels))
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        files[part] = replace(svhn.FILES[part], checksum=f"md5:{md5}")
    monkeypatch.setattr(svhn, "FILES", files)
    monkeypatch.setattr(digit_collections, "SVHN", files)
    return tmp_path


def test_house_numbers_are_read_in_grey(house_numbers: Path) -> None:
    images, labels = read_svhn([house_numbers / file.path for file in svhn.FILES.values()])
    assert images.shape == (10, 32, 32)
    assert labels.tolist() == [7, 8, 9, 0, 1, 2, 7, 8, 9, 0]
    assert (images[0] == 76).all(), "red is .299 of white"


def test_svhn_becomes_a_domain_when_asked_for(
    house_numbers: Path, digits_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MNIST", "USPS", "optdigits"):
        (house_numbers / name).symlink_to(digits_root / name)
    benchmark = open_benchmark("Digits", data_dir=house_numbers, options={"svhn": "yes"})
    assert benchmark.domains == ("mnist", "optdigits", "svhn", "usps")
    data = benchmark.load("svhn")
    assert data.inputs(torch.arange(10)).shape == (10, 1, 28, 28)
    assert benchmark.known is not None
    assert benchmark.known.domains["svhn"] == 99_289


def test_svhn_is_downloaded_and_checked(house_numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(house_numbers / "SVHN"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(svhn, "ADDRESS", f"http://127.0.0.1:{server.server_address[1]}/")
        assert fetch_svhn(tmp_path / "out", notify=silent) == ""
        assert fetch_svhn(tmp_path / "out", notify=pytest.fail) == "", "it is there"
        (tmp_path / "out" / "SVHN" / "test_32x32.mat").write_bytes(b"damaged")
        assert fetch_svhn(tmp_path / "out", notify=silent) == "", "a damaged file is replaced"
        wrong = {part: replace(file, checksum="md5:0") for part, file in svhn.FILES.items()}
        monkeypatch.setattr(svhn, "FILES", wrong)
        assert "expected md5 0, got" in fetch_svhn(tmp_path / "wrong", notify=silent)
        server.shutdown()
    for file in svhn.FILES.values():
        assert (tmp_path / "out" / file.path).read_bytes() == (house_numbers / file.path).read_bytes()
    monkeypatch.setattr(svhn, "ADDRESS", "http://127.0.0.1:1/")
    assert "cannot be reached" in fetch_svhn(tmp_path / "off", notify=silent)
