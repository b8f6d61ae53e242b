"""Copies between host and device: non-blocking where the device allows it, and many tensors in one transfer."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# Every tensor in a piece is aligned to this many bytes: on unaligned memory, kernels may take another path and round
# differently.
ALIGNMENT = 512


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, or return it if it is there; a copy to a CUDA device does not block the host."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


@torch.no_grad()
def copy_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy named tensors to a device, with one transfer for each dtype.

    The copies have the same order, names, shapes and dtypes; copies of one dtype share a storage. Images and
    convolutions (four dimensions) are channels last, see `models.headed.ScaleImages`; others are contiguous.

    >>> copy_together({"a": torch.ones(2), "b": torch.arange(3)}, torch.device("cpu"))
    {'a': tensor([1., 1.]), 'b': tensor([0, 1, 2])}
    """
    groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.dtype, tensor.device), []).append(name)
    copies: dict[str, Tensor] = {}
    for (dtype, origin), names in groups.items():
        sizes = [math.ceil(tensors[name].nbytes / ALIGNMENT) * ALIGNMENT // dtype.itemsize for name in names]
        pinned = (origin.type, device.type) == ("cpu", "cuda")
        piece = torch.empty(sum(sizes), dtype=dtype, device=origin, pin_memory=pinned)
        for name, part in zip(names, torch.split(piece, sizes), strict=True):
            _shaped(part, tensors[name]).copy_(tensors[name])
        for name, part in zip(names, torch.split(send(piece, device), sizes), strict=True):
            copies[name] = _shaped(part, tensors[name])
    return {name: copies[name] for name in tensors}


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    """View the beginning of a flat tensor in the shape of another."""
    if like.dim() != 4:
        return part[: like.numel()].view(like.shape)
    count, channels, height, width = like.shape
    return part[: like.numel()].view(count, height, width, channels).permute(0, 3, 1, 2)
