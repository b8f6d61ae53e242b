"""Write MATLAB files of version 5, by the format's description: what tests read, and what old data sets are."""

import struct
import zlib
from pathlib import Path

import numpy as np

CLASSES = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13}
TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9}


def element(kind: int, content: bytes, order: str) -> bytes:
    if len(content) <= 4:
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def matrix(name: str, array: np.ndarray, *, order: str = "<", flags: int = 0, stored: str | None = None) -> bytes:
    kind = array.dtype.str[1:]
    values = array.astype(f"{order}{stored or kind}").tobytes(order="F")
    content = element(6, struct.pack(f"{order}II", CLASSES[kind] | flags << 8, 0), order)
    content += element(5, np.array(array.shape, f"{order}i4").tobytes(), order)
    content += element(1, name.encode(), order) + element(TYPES[stored or kind], values, order)
    return element(14, content, order)


def write(path: Path, *elements: bytes, order: str = "<") -> Path:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100)
    path.write_bytes(head + {"<": b"IM", ">": b"MI"}[order] + b"".join(elements))
    return path


def compressed(content: bytes, order: str = "<") -> bytes:
    packed = zlib.compress(content)
    return struct.pack(f"{order}II", 15, len(packed)) + packed
