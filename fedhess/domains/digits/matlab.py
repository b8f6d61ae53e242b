"""Read numeric arrays from MATLAB's .mat files of version 5, the format of several old data sets.

Source: "MAT-File Format", The MathWorks, chapter 1 (level 5). Read are real, full, numeric arrays, compressed or not.
"""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

HEADER = 128  # bytes: text, version, byte order
MATRIX, COMPRESSED = 14, 15  # types of elements
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
COMPLEX = 0x08  # a flag of an array, in the second byte of its flags
NUMERIC = range(6, 16)  # classes of arrays: double to uint64


def read_arrays(path: Path) -> dict[str, Array]:
    """Read every numeric array of a file; what else is in it is passed over.

    Args:
        path: The file.

    Returns:
        Name -> array, in the type that it is stored in, shaped as in MATLAB.

    Raises:
        ValueError: It is no such file, or it is cut short.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of version 5")
    arrays: dict[str, Array] = {}
    try:
        for kind, data in _elements(memoryview(content)[HEADER:], order):
            inner = _elements(memoryview(zlib.decompress(data)), order) if kind == COMPRESSED else [(kind, data)]
            for inner_kind, inner_data in inner:
                if inner_kind == MATRIX and (named := _array(inner_data, order)):
                    arrays[named[0]] = named[1]
    except (struct.error, zlib.error, LookupError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    return arrays


def _elements(data: memoryview, order: str) -> list[tuple[int, memoryview]]:
    """Split into (type, content): a tag of two numbers and the content, padded; or both in eight bytes."""
    found: list[tuple[int, memoryview]] = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # small: the size is in the upper half of the first number
            kind, size = kind & 0xFFFF, kind >> 16
            found.append((kind, data[at + 4 : at + 4 + size]))
            at += 8
            continue
        if at + 8 + size > len(data):
            raise ValueError(f"it is damaged: {size} bytes announced, {len(data) - at - 8} are there")
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)
    return found


def _array(data: memoryview, order: str) -> tuple[str, Array] | None:
    """Read name and values of an array, or nothing if it is not numeric and real."""
    parts = _elements(data, order)
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    if flags & 0xFF not in NUMERIC or flags >> 8 & COMPLEX:
        return None
    shape = tuple(np.frombuffer(parts[1][1], f"{order}i4").tolist())
    name = bytes(parts[2][1]).decode("ascii")
    kind, values = parts[3]
    array: Array = np.frombuffer(values, order + DTYPES[kind])
    if array.size != math.prod(shape):
        raise ValueError(f"it is damaged: {name} has {array.size} values, expected {shape}")
    return name, array.reshape(shape, order="F")
