"""S^T (X * X) for tall X, without ever holding X * X.

X * X is as large as a full batch's features. On a CPU, forward and backward process the batch in pieces that stay in
the cache, on one thread: an operation on a piece ends before a second thread has woken up. Small batches, and batches
on other devices, are processed at once.

Shape suffixes: B examples, C outputs, K inputs of the head; b examples of a piece.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedhess.base.environment import torch_threads

CPU_ELEMENTS = 2**18  # of a piece on a CPU: 1 MiB in float32, which its cache holds from one operation to the next


def second_moment(scales_BC: Tensor, inputs_BK: Tensor) -> Tensor:
    """Sum the squared inputs over the examples, scaled for every example and output: S^T (X * X).

    Args:
        scales_BC: S, (B, C).
        inputs_BK: X, (B, K), of the same dtype and device.

    Returns:
        (C, K); differentiable once.

    >>> second_moment(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[19., 36.]])
    """
    if inputs_BK.numel() <= CPU_ELEMENTS:  # a separate autograd node would take longer than this
        return scales_BC.T @ inputs_BK.square()
    second_CK: Tensor = _SecondMoment.apply(scales_BC, inputs_BK)
    return second_CK


class _SecondMoment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales_BC: Tensor, inputs_BK: Tensor) -> Tensor:
        ctx.save_for_backward(scales_BC, inputs_BK)
        second_CK = inputs_BK.new_zeros(scales_BC.shape[1], inputs_BK.shape[1])
        for part in _pieces(inputs_BK):
            second_CK.addmm_(scales_BC[part].T, inputs_BK[part].square())
        return second_CK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_second: Tensor) -> tuple[Tensor | None, ...]:
        scales_BC, inputs_BK = ctx.saved_tensors
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        to_scales, to_inputs = (torch.empty_like(saved) if needed else None for saved, needed in wanted)
        for part in _pieces(inputs_BK):
            inputs_bK = inputs_BK[part]
            if to_scales is not None:
                torch.mm(inputs_bK.square(), by_second.T, out=to_scales[part])
            if to_inputs is not None:
                torch.mm(scales_BC[part], by_second, out=to_inputs[part]).mul_(inputs_bK).mul_(2)
        return to_scales, to_inputs


def _pieces(inputs_BK: Tensor) -> Iterator[slice]:
    """Cut the examples into pieces; if there are several, torch runs on one thread until they are consumed."""
    examples, width = inputs_BK.shape
    if inputs_BK.device.type != "cpu" or inputs_BK.numel() <= CPU_ELEMENTS:
        yield slice(None)
        return
    rows = max(1, CPU_ELEMENTS // width)
    with torch_threads(1):
        yield from (slice(start, start + rows) for start in range(0, examples, rows))
