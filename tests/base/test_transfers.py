"""What is copied together arrives as it was, on memory that kernels like."""

import torch
from flwr.app import Array
from torch import Tensor

from fedhess.base.transfers import ALIGNMENT, copy_together
from fedhess.federation.tensors import decode_tensors, encode_tensors

TENSORS: dict[str, Tensor] = {
    "weight": torch.randn(5, 3, 2, 4),
    "count": torch.tensor(7),
    "bias": torch.randn(5, dtype=torch.float64)[::2],
    "nothing": torch.empty(0, 3),
    "flags": torch.tensor([True, False, True]),
    "pixels": torch.randn(6, 1, 1, 1),
    "scalar": torch.tensor(-0.0),
}


def test_tensors_that_are_copied_together_are_what_they_were() -> None:
    encoded = encode_tensors(TENSORS)
    assert all(encoded[name].data == Array(tensor.contiguous()).data for name, tensor in TENSORS.items()), "Flower's"
    received = decode_tensors(encoded)
    copies = copy_together(received, torch.device("cpu"))
    assert list(copies) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert copies[name].dtype == tensor.dtype
        assert torch.equal(copies[name], tensor)
        assert torch.equal(copies[name].signbit(), tensor.signbit())
        assert copies[name].data_ptr() % 64 == 0, name
        alone = tensor.contiguous().clone(
            memory_format=torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        )
        assert copies[name].stride() == alone.stride(), name
        copies[name].fill_(1)
    assert all(torch.equal(received[name], tensor) for name, tensor in TENSORS.items()), "copies, not views"


def test_of_each_type_there_is_one_piece() -> None:
    copies = copy_together(TENSORS, torch.device("cpu"))
    pieces = {tensor.untyped_storage().data_ptr() for tensor in copies.values()}
    assert len(pieces) == len({tensor.dtype for tensor in TENSORS.values()}) == 4
    floats = sum(-(-tensor.nbytes // ALIGNMENT) for tensor in TENSORS.values() if tensor.dtype == torch.float32)
    assert copies["weight"].untyped_storage().nbytes() == floats * ALIGNMENT
