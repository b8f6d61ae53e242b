import pytest
import torch
from torch import Tensor

from fedhess.second_moment import CPU_ELEMENTS, second_moment


def plainly(scales: Tensor, inputs: Tensor) -> Tensor:
    return scales.T @ inputs.square()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("examples", [1, 37, 2500])
def test_value_and_derivatives_are_those_of_the_plain_product(examples: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, 300, generator=generator, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(examples, outputs, generator=generator, dtype=torch.float64, requires_grad=True)
    if examples == 2500:
        assert inputs.numel() > 2 * CPU_ELEMENTS, "several pieces, and a rest"
        assert examples % (CPU_ELEMENTS // 300)
    direction = torch.randn(outputs, 300, generator=generator, dtype=torch.float64)
    found = [function(scales, inputs) for function in (second_moment, plainly)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(value, (scales, inputs), direction) for value in found]
    for ours, plain in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for_is_differentiated() -> None:
    scales, inputs = torch.ones(4, 2), torch.ones(4, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(second_moment(scales, inputs).sum(), inputs)
    torch.testing.assert_close(slope, torch.full((4, 3), 4.0))
    weights = torch.ones(4, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(second_moment(weights, inputs.detach()).sum(), weights)
    torch.testing.assert_close(slope, torch.full((4, 2), 3.0))


def test_second_derivatives_are_those_of_the_plain_product() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    found = []
    for function in (second_moment, plainly):
        slopes = torch.autograd.grad(function(scales, inputs).pow(3).sum(), (scales, inputs), create_graph=True)
        found.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), (scales, inputs)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
