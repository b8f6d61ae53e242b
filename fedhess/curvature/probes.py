"""Random signs for Hutchinson's estimator: common random numbers that every domain of a round can draw again."""

import torch
from torch import Tensor


def check_probes(probes: int) -> None:
    """Raise ValueError unless there is at least one probe."""
    if probes < 1:
        raise ValueError(f"probes: expected at least 1, got {probes}; the paper draws 100 to 300")


def draw_signs(probes: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw Rademacher probes: -1 or 1 with equal probability, on the generator's own device.

    Args:
        probes: Number of probes, n.
        shape: Shape of one probe.
        generator: Gives the signs.

    Returns:
        (n, *shape), int8.

    >>> draw_signs(1, (4,), torch.Generator().manual_seed(0))
    tensor([[-1,  1,  1, -1]], dtype=torch.int8)
    """
    bits = torch.randint(0, 2, (probes, *shape), generator=generator, device=generator.device, dtype=torch.int8)
    return bits.mul_(2).sub_(1)
