"""ColoredMNIST in the form "domainbed": three domains of 70,000 digits, whose colours lie more or less often.

Source: Gulrajani and Lopez-Paz, "In search of lost domain generalization", ICLR 2021, and its released code, after
Arjovsky et al. 2019. There the domains are called +90%, +80% and -90%: how often colour and label agree, the last one
turned round. Here a name says how often they disagree, as in form "irm", since names become folders.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedhess.base.files import digest_of
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, leave_one_out
from fedhess.domains.digits.mnist import read_mnist
from fedhess.domains.domain import TensorDomain

LABEL_FLIP = 0.25
COLOUR_FLIPS = {"flip-0.1": 0.1, "flip-0.2": 0.2, "flip-0.9": 0.9}
FORMAT = "1"  # change it whenever the examples do


def domainbed_form(options: Mapping[str, OptionValue], root: Path) -> Benchmark:
    """Make the benchmark; options are read and checked, nothing is loaded.

    Deviation: random draws are torch's own, so single examples differ from those of the released code.

    Args:
        options: As `open_colored_mnist` has read them.
        root: Of MNIST.

    Returns:
        The benchmark: (2, 28, 28) uint8, two logits, each domain left out once, a fifth held out for validation.
    """
    complete = KnownCounts(dict(zip(COLOUR_FLIPS, (23_334, 23_333, 23_333), strict=True)))
    return Benchmark(
        name="ColoredMNIST",
        domains=tuple(COLOUR_FLIPS),
        classes=("5 to 9", "0 to 4"),
        input_shape=(2, 28, 28),
        outputs=2,
        default_model="mnist-cnn",
        scenarios=leave_one_out(tuple(COLOUR_FLIPS)),
        options=dict(options),
        loader=partial(_load, root=root, options=options),
        known=None if options["per_domain"] else complete,
        recipe="ColoredMNIST form=domainbed",
    )


def _load(domain: str, *, root: Path, options: Mapping[str, OptionValue]) -> TensorDomain:
    parts = (read_mnist(root), read_mnist(root, part="test"))
    images, digits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    seed = int(options["seed"])
    order = torch.randperm(len(digits), generator=_generator(seed, "shuffle"))
    mine = order[list(COLOUR_FLIPS).index(domain) :: len(COLOUR_FLIPS)]
    labels = (digits[mine] < 5) ^ _flips(len(mine), LABEL_FLIP, _generator(seed, "label", domain))
    colours = labels ^ _flips(len(mine), COLOUR_FLIPS[domain], _generator(seed, "colour", domain))
    count = int(options["per_domain"]) or len(mine)
    examples = images[mine[:count]].unsqueeze(1).repeat(1, 2, 1, 1)
    examples[torch.arange(len(examples)), 1 - colours[:count].to(torch.int64)] = 0
    return TensorDomain(domain, examples, labels=labels[:count].to(torch.int64))


def _flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _generator(seed: int, *purpose: str) -> torch.Generator:
    """Give a generator of its own for each purpose."""
    parts = ["ColoredMNIST domainbed", FORMAT, str(seed), *purpose]
    return torch.Generator().manual_seed(int(digest_of(parts)[:15], 16))
