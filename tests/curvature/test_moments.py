import pytest
import torch
from torch import Tensor

from fedhess.curvature.moments import CPU_ELEMENTS, moments, second_moment


def plainly(firsts: Tensor, seconds: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return firsts.T @ inputs, seconds.T @ inputs.square()


def drawn(examples: int, outputs: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((examples, outputs), (examples, outputs), (examples, width))
    first, second, inputs = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return first.requires_grad_(), second.requires_grad_(), inputs.requires_grad_()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("examples", [1, 37, 2500])
def test_values_and_derivatives_are_those_of_the_plain_products(examples: int, outputs: int) -> None:
    given = drawn(examples, outputs, 900)
    if examples == 2500:
        assert given[2].numel() > 2 * CPU_ELEMENTS, "several pieces, and a rest"
        assert examples % (CPU_ELEMENTS // 900)
    found = [function(*given) for function in (moments, plainly)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    directions = [torch.randn_like(value) for value in found[0]]
    slopes = [torch.autograd.grad(values, given, directions) for values in found]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", range(3))
def test_only_what_is_asked_for_is_differentiated(wanted: int) -> None:
    given = [tensor.detach() for tensor in drawn(4, 2, 3)]
    given[wanted].requires_grad_()
    slopes = [torch.autograd.grad(sum(v.sum() for v in f(*given)), given[wanted]) for f in (moments, plainly)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_those_of_the_plain_products() -> None:
    given, found = drawn(5, 2, 3), []
    for function in (moments, plainly):
        slopes = torch.autograd.grad(sum(v.pow(3).sum() for v in function(*given)), given, create_graph=True)
        found.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), given))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("examples", [5, 2500])
def test_the_second_moment_alone_is_that_of_both(examples: int) -> None:
    _, seconds, inputs = drawn(examples, 2, 900)
    found = [second_moment(seconds, inputs), plainly(seconds, seconds, inputs)[1]]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    for value in found:
        assert value.grad_fn is not None
    direction = torch.randn_like(found[0])
    slopes = [torch.autograd.grad(value, (seconds, inputs), direction, create_graph=True) for value in found]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(second_moment(seconds, inputs), (seconds, inputs), direction),
        slopes[1],
        rtol=1e-12,
        atol=1e-12,
    )
    further = [torch.autograd.grad(sum(slope.square().sum() for slope in own), inputs)[0] for own in slopes]
    torch.testing.assert_close(*further, rtol=1e-12, atol=1e-12)


def test_pieces_leave_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    second_moment(torch.ones(2000, 1), torch.ones(2000, 500))
    assert torch.get_num_threads() == before
