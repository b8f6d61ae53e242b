"""S^T (X * X) for tall X, without ever holding X * X.

Shape suffixes: B examples, C outputs, K inputs of the head.
"""

from typing import Any

import torch
from torch import Tensor

CPU_ELEMENTS = 2**18  # of a piece on a CPU: 1 MiB in float32, which its cache holds between two operations


def second_moment(scales_BC: Tensor, inputs_BK: Tensor) -> Tensor:
    """Sum the squares of the inputs over the examples, scaled by each column of scales: S^T (X * X).

    X * X is as large as a full batch's features. On a CPU the batch goes piece by piece through square and product
    while the piece is in the cache, forwards and backwards; elsewhere it goes through at once.

    Args:
        scales_BC: S, (B, C).
        inputs_BK: X, (B, K), of the same dtype and device.

    Returns:
        (C, K), differentiable any number of times.

    >>> second_moment(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[19., 36.]])
    """
    result: Tensor = _SecondMoment.apply(scales_BC, inputs_BK)
    return result


class _SecondMoment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales_BC: Tensor, inputs_BK: Tensor) -> Tensor:
        ctx.save_for_backward(scales_BC, inputs_BK)
        total_CK = inputs_BK.new_zeros(scales_BC.shape[1], inputs_BK.shape[1])
        for scales_bC, inputs_bK in _pieces(scales_BC, inputs_BK):
            total_CK.addmm_(scales_bC.T, inputs_bK.square())
        return total_CK

    @staticmethod
    def backward(ctx: Any, grad_CK: Tensor) -> tuple[Tensor | None, Tensor | None]:
        scales_BC, inputs_BK = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates further
            return inputs_BK.square() @ grad_CK.T, 2 * inputs_BK * (scales_BC @ grad_CK)
        by_scales = torch.empty_like(scales_BC) if ctx.needs_input_grad[0] else None
        by_inputs = torch.empty_like(inputs_BK) if ctx.needs_input_grad[1] else None
        position = 0
        for scales_bC, inputs_bK in _pieces(scales_BC, inputs_BK):
            part = slice(position, position := position + len(inputs_bK))
            if by_scales is not None:
                torch.mm(inputs_bK.square(), grad_CK.T, out=by_scales[part])
            if by_inputs is not None:
                torch.mm(scales_bC, grad_CK, out=by_inputs[part])
                by_inputs[part].mul_(inputs_bK).mul_(2)
        return by_scales, by_inputs


def _pieces(scales_BC: Tensor, inputs_BK: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = len(inputs_BK)
    if inputs_BK.device.type == "cpu":
        rows = max(1, CPU_ELEMENTS // inputs_BK.shape[1])
    return list(zip(torch.split(scales_BC, rows), torch.split(inputs_BK, rows), strict=True))
