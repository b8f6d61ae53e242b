"""RotatedMNIST: six domains of different digits, each turned by its own angle.

Source: Ghifary et al. 2015, "Domain generalization for object recognition with multi-task autoencoders", in the form of
DomainBed (Gulrajani and Lopez-Paz, ICLR 2021): all 70,000 images shuffled, every sixth one in a domain, turned
counter-clockwise about the centre with bilinear interpolation on a black ground, not enlarged.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, leave_one_out
from fedhess.domains.digits.mnist import find_mnist, generator_of, read_whole_mnist
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening

ANGLES = {"0": 0, "15": 15, "30": 30, "45": 45, "60": 60, "75": 75}  # domain -> degrees
COMPLETE = KnownCounts({"0": 11_667, "15": 11_667, "30": 11_667, "45": 11_667, "60": 11_666, "75": 11_666})
FORMAT = "1"  # change it whenever the examples do


def open_rotated_mnist(opening: Opening) -> Benchmark:
    """Open RotatedMNIST; each angle is left out once.

    Args:
        opening: Options: ``per_domain`` (only the first so many examples of each domain, for quick checks; 0 =
            all: 11,666 or 11,667); ``seed`` and ``data_dir``, which override the arguments.

    Returns:
        The benchmark: (1, 28, 28) uint8, ten classes.
    """
    opening, options = settle_rotated_mnist(opening)
    root = find_mnist(opening)
    return Benchmark(
        name="RotatedMNIST",
        domains=tuple(ANGLES),
        classes=tuple(map(str, range(10))),
        input_shape=(1, 28, 28),
        outputs=10,
        default_model="mlp",
        scenarios=leave_one_out(tuple(ANGLES)),
        options={**options, "data_dir": str(root.resolve())},
        loader=partial(_load, root=root, options=options),
        known=None if options["per_domain"] else COMPLETE,
    )


def settle_rotated_mnist(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options; see `Opening.settled`."""
    return opening.settled(per_domain=0, seed=opening.seed)


def _load(domain: str, *, root: Path, options: dict[str, OptionValue]) -> TensorDomain:
    images, digits = read_whole_mnist(root)
    order = torch.randperm(len(digits), generator=generator_of("RotatedMNIST", FORMAT, str(options["seed"])))
    mine = order[list(ANGLES).index(domain) :: len(ANGLES)]
    mine = mine[: int(options["per_domain"]) or len(mine)]
    return TensorDomain(domain, rotate(images[mine], ANGLES[domain]).unsqueeze(1), labels=digits[mine])


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn (N, H, W) uint8 images counter-clockwise about their centre: bilinear, on a black ground.

    >>> rotate(torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8), 90).tolist()
    [[[2, 4], [1, 3]]]
    """
    bilinear = Image.Resampling.BILINEAR
    turned = [np.asarray(Image.fromarray(image).rotate(degrees, resample=bilinear)) for image in images.numpy()]
    return torch.from_numpy(np.stack(turned)) if turned else images.clone()
