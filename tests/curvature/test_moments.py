import pytest
import torch
from torch import Tensor

from fedhess.curvature.moments import CPU_ELEMENTS, second_moment


def plainly(scales: Tensor, inputs: Tensor) -> Tensor:
    return scales.T @ inputs.square()


def drawn(examples: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(examples, n, generator=generator, dtype=torch.float64) for n in (outputs, 900))


@pytest.mark.parametrize("wanted", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("examples", [1, 37, 2500])
def test_values_and_derivatives_are_those_of_the_plain_product(
    examples: int, outputs: int, wanted: tuple[int, ...]
) -> None:
    assert 2 * CPU_ELEMENTS < 2500 * 900, "several pieces, and a rest"
    assert 2500 % (CPU_ELEMENTS // 900)
    given = drawn(examples, outputs)
    leaves = [given[index].requires_grad_() for index in wanted]
    found = [function(*given) for function in (second_moment, plainly)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found[0])
    slopes = [torch.autograd.grad(value, leaves, direction) for value in found]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_pieces_leave_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    second_moment(torch.ones(2000, 1), torch.ones(2000, 500))
    assert torch.get_num_threads() == before
