"""MATLAB files, written here by the format's description: compressed or not, small elements, both byte orders."""

import struct
from pathlib import Path

import numpy as np
import pytest
from matlab_files import CLASSES, compressed, element, matrix, write

from fedhess.domains.digits.matlab import read_arrays


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", list(CLASSES))
def test_arrays_of_every_type_come_back(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tiny = np.array([[7]], dtype=dtype)
    parts = [matrix("cube", array, order=order), compressed(matrix("x", tiny, order=order), order)]
    arrays = read_arrays(write(tmp_path / "a.mat", *parts, order=order))
    assert list(arrays) == ["cube", "x"]
    assert np.array_equal(arrays["cube"], array)
    assert np.array_equal(arrays["x"], tiny)


def test_doubles_stored_as_bytes_are_read(tmp_path: Path) -> None:
    array = np.arange(10, dtype="f8").reshape(2, 5)
    assert np.array_equal(read_arrays(write(tmp_path / "a.mat", matrix("d", array, stored="u1")))["d"], array)


def test_what_is_not_numeric_and_real_is_passed_over(tmp_path: Path) -> None:
    array = np.arange(4, dtype="f8").reshape(2, 2)
    text = bytearray(matrix("text", array))
    text[16] = 4  # the class of characters
    path = write(tmp_path / "a.mat", bytes(text), matrix("c", array, flags=0x08), element(5, b"12345678", "<"),
                 matrix("d", array))  # fmt: skip
    assert list(read_arrays(path)) == ["d"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.mat", matrix("d", np.arange(100, dtype="f8").reshape(10, 10))).read_bytes()
    bad = tmp_path / "bad.mat"
    for content, message in (
        (good[:200], "is damaged: 848 bytes announced, 64 are there"),
        (good[:130], "is damaged"),
        (b"no such thing", "no MATLAB file of version 5"),
        (good[:128] + compressed(good[128:])[:100], "is damaged"),
        (good[:128] + struct.pack("<II", 15, 20) + b"x" * 20, "is damaged"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_arrays(bad)


def test_an_array_with_too_few_values_is_refused(tmp_path: Path) -> None:
    content = bytearray(matrix("d", np.arange(100, dtype="f8").reshape(10, 10)))
    content[32:36] = struct.pack("<i", 11)
    with pytest.raises(ValueError, match=r"d has 100 values, expected \(11, 10\)"):
        read_arrays(write(tmp_path / "a.mat", bytes(content)))
