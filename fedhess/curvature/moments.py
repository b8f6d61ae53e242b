"""R^T X and S^T (X * X) for tall X in one pass, without ever holding X * X.

X * X is as large as a full batch's features. On a CPU the batch goes piece by piece through every operation while the
piece is in the cache, forwards and backwards, on one thread: an operation on a piece is over before a second thread has
woken up. Small batches, and those on other devices, go through at once.

Shape suffixes: B examples, C outputs, K inputs of the head; b examples of a piece.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fedhess.base.environment import torch_threads

CPU_ELEMENTS = 2**18  # of a piece on a CPU: 1 MiB in float32, which its cache holds from one operation to the next


def moments(firsts_BC: Tensor, seconds_BC: Tensor, inputs_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the inputs, and their squares, over the examples, each with a scale for every example and output.

    Args:
        firsts_BC: R, scales of the inputs, (B, C).
        seconds_BC: S, scales of their squares, (B, C).
        inputs_BK: X, (B, K), of the same dtype and device.

    Returns:
        R^T X and S^T (X * X), each (C, K); differentiable any number of times.

    >>> moments(torch.ones(2, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    (tensor([[4., 6.]]), tensor([[19., 36.]]))
    """
    first_CK, second_CK = _Moments.apply(firsts_BC, seconds_BC, inputs_BK)
    return first_CK, second_CK


def second_moment(seconds_BC: Tensor, inputs_BK: Tensor) -> Tensor:
    """Sum the squares alone: S^T (X * X), (C, K); see :func:`moments`.

    >>> second_moment(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[19., 36.]])
    """
    if inputs_BK.numel() <= CPU_ELEMENTS:  # a node of its own would take longer than this
        return seconds_BC.T @ inputs_BK.square()
    second_CK: Tensor = _Moments.apply(None, seconds_BC, inputs_BK)[1]
    return second_CK


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, firsts_BC: Tensor | None, seconds_BC: Tensor, inputs_BK: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(firsts_BC, seconds_BC, inputs_BK)
        shape = (seconds_BC.shape[1], inputs_BK.shape[1])
        first_CK = None if firsts_BC is None else inputs_BK.new_zeros(shape)
        second_CK = inputs_BK.new_zeros(shape)
        for part in _pieces(inputs_BK):
            inputs_bK = inputs_BK[part]
            if first_CK is not None and firsts_BC is not None:
                first_CK.addmm_(firsts_BC[part].T, inputs_bK)
            second_CK.addmm_(seconds_BC[part].T, inputs_bK.square())
        return first_CK, second_CK

    @staticmethod
    def backward(ctx: Any, by_first: Tensor | None, by_second: Tensor) -> tuple[Tensor | None, ...]:
        firsts_BC, seconds_BC, inputs_BK = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates further
            to_inputs = 2 * inputs_BK * (seconds_BC @ by_second)
            to_seconds = inputs_BK.square() @ by_second.T
            if firsts_BC is None or by_first is None:
                return None, to_seconds, to_inputs
            return inputs_BK @ by_first.T, to_seconds, to_inputs + firsts_BC @ by_first
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        to_firsts, to_seconds, to_inputs = (torch.empty_like(saved) if needed else None for saved, needed in wanted)
        for part in _pieces(inputs_BK):
            inputs_bK = inputs_BK[part]
            if to_firsts is not None and by_first is not None:
                torch.mm(inputs_bK, by_first.T, out=to_firsts[part])
            if to_seconds is not None:
                torch.mm(inputs_bK.square(), by_second.T, out=to_seconds[part])
            if to_inputs is not None:
                own_bK = torch.mm(seconds_BC[part], by_second, out=to_inputs[part]).mul_(inputs_bK)
                if firsts_BC is None or by_first is None:
                    own_bK.mul_(2)
                else:
                    own_bK.addmm_(firsts_BC[part], by_first, beta=2)
        return to_firsts, to_seconds, to_inputs


def _pieces(inputs_BK: Tensor) -> Iterator[slice]:
    """Cut the examples into pieces; if there are several, torch has one thread until they are used up."""
    examples, width = inputs_BK.shape
    if inputs_BK.device.type != "cpu" or inputs_BK.numel() <= CPU_ELEMENTS:
        yield slice(None)
        return
    rows = max(1, CPU_ELEMENTS // width)
    with torch_threads(1):
        yield from (slice(start, start + rows) for start in range(0, examples, rows))
