"""Convert tensors to Flower's arrays and back, and check that a client's tensors are complete, well-shaped and finite.

Arrays travel in Flower's own serialisation (``numpy.ndarray``: the .npy format), so a plain Flower strategy or client
can read them. Encoding copies the bytes once and decoding never: for a ResNet-18 (47 MB) they take about 25 and 3 ms,
Flower's own functions 70 and 55 ms.
"""

import io
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedhess.base.transfers import copy_together

HEADERS_KEPT = 512  # writing a header takes longer than writing the values of a small tensor


class NotFiniteError(ValueError):
    """A tensor has values that are not finite."""


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Serialise named tensors in their order; tensors on a device are fetched together.

    Raises:
        TypeError: A dtype has no NumPy counterpart (bfloat16).
    """
    away = {name: tensor for name, tensor in tensors.items() if tensor.device.type != "cpu"}
    tensors = {**tensors, **copy_together(away, torch.device("cpu"))}
    return ArrayRecord({name: _encode(tensor) for name, tensor in tensors.items()})


def _encode(tensor: Tensor) -> Array:
    array = tensor.detach().contiguous().numpy()
    values = array.reshape(-1).view(np.uint8).data if array.size else b""
    data = b"".join((_header(array.dtype, array.shape), values))
    return Array(str(array.dtype), array.shape, "numpy.ndarray", data)


@lru_cache(maxsize=HEADERS_KEPT)
def _header(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(np.empty(shape, dtype)))
    return stream.getvalue()


def decode_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Read named tensors; they share the record's immutable bytes and must not be written to.

    Raises:
        ValueError: The bytes of a tensor are not a .npy array of numbers.
    """
    return {str(name): _decode(array) for name, array in record.items()}


def _decode(array: Array) -> Tensor:
    try:
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
        begin = len(array.data) - dtype.itemsize * math.prod(shape)
        if array.data[:begin] != _header(dtype, shape):
            return torch.from_numpy(array.numpy())  # in another memory order, or not an array
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.frombuffer(array.data, dtype=dtype, offset=begin).reshape(shape))
    except Exception as error:
        raise ValueError("expected a .npy array of plain numbers") from error


def read_tensors(content: RecordDict, key: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decode the tensors of a reply in the order of ``like``, and check them before they are used.

    Raises:
        ValueError: The record or a tensor is missing, unexpected, of another shape or dtype, or not finite
            (`NotFiniteError`).
    """
    record = content.array_records.get(key)
    if record is None:
        raise ValueError(f"expected arrays {key!r} in the reply, got records {sorted(content)}")
    if set(record) != set(like):
        missing, extra = sorted(set(like) - set(record)), sorted(set(record) - set(like))
        raise ValueError(f"{key}: tensors missing {missing}, unexpected {extra}")
    tensors: dict[str, Tensor] = {}
    for name, expected in like.items():
        tensor = _decode(record[name])
        if tensor.shape != expected.shape:
            raise ValueError(f"{key}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")
        if tensor.dtype != expected.dtype:
            raise ValueError(f"{key}: {name} has dtype {tensor.dtype}, expected {expected.dtype}")
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFiniteError(f"{key}: {name} has {bad} of {tensor.numel()} values that are not finite")
        tensors[name] = tensor
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether every value of a tensor is finite; integers always are."""
    if not tensor.is_floating_point():
        return True
    # One pass without a temporary; the exact check is needed only if the sum is not finite.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def array_bytes(content: RecordDict) -> int:
    """Count the bytes of the arrays in a message's content (configuration and metrics are a few hundred more)."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
