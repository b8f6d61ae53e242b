"""Digits: handwritten and printed digits of several collections, each a domain.

MNIST, USPS and optdigits are real collections of their own writers, scanners and resolutions; SVHN adds photographs of
house numbers. All become 1x28x28, white on black as MNIST has them, which is left as it is: the others are resized to
the whole square (bilinear), so that how much of it a digit fills is a part of the shift, and SVHN is turned grey.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, leave_one_out
from fedhess.domains.digits.known_file import data_roots
from fedhess.domains.digits.mnist import find_mnist, read_mnist
from fedhess.domains.digits.optdigits import FILE as OPTDIGITS
from fedhess.domains.digits.optdigits import PER_DIGIT as PER_OPTDIGIT
from fedhess.domains.digits.optdigits import installed_optdigits, read_optdigits
from fedhess.domains.digits.svhn import COUNT as SVHN_COUNT
from fedhess.domains.digits.svhn import FILES as SVHN
from fedhess.domains.digits.svhn import read_svhn
from fedhess.domains.digits.usps import FILE as USPS
from fedhess.domains.digits.usps import PER_DIGIT as PER_USPS_DIGIT
from fedhess.domains.digits.usps import read_usps
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening

SIDE = 28  # pixels
DIGITS = tuple(map(str, range(10)))
PER_MNIST_DIGIT = (6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958)
ADVICE = "`python -m fedhess.data prepare Digits` fetches it into the cache"
MEND = "delete it; `python -m fedhess.data prepare Digits` fetches it anew"
MEND_SVHN = MEND.replace("Digits`", "Digits --domains-args svhn=true`")
Files = Mapping[str, tuple[Path, ...]]  # domain -> its files; MNIST's is its root


def open_digits(opening: Opening) -> Benchmark:
    """Open Digits; each collection is left out once.

    Args:
        opening: Options: ``svhn`` (whether SVHN is a domain, false); ``per_domain`` (so many examples of each domain,
            drawn once for all, for quick checks; 0 = all: 70,000, 9,298, 1,797 and 99,289); ``data_dir``, which
            overrules the argument.

    Returns:
        The benchmark: (1, 28, 28) uint8, ten classes.

    Raises:
        UsageError: An unknown option, or a collection that is not there or damaged.
    """
    opening, options = settle_digits(opening)
    opening = replace(opening, data_dir=opening.data_dir and opening.data_dir.resolve())
    files: Files = find_collections(opening, svhn=bool(options["svhn"]))
    return Benchmark(
        name="Digits",
        domains=tuple(files),
        classes=DIGITS,
        input_shape=(1, SIDE, SIDE),
        outputs=10,
        default_model="mlp",
        scenarios=leave_one_out(tuple(files)),
        options={**options, "data_dir": str(opening.data_dir or "")},
        loader=partial(_load, files=files, options=options),
        known=None if options["per_domain"] else _known(tuple(files)),
    )


def settle_digits(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options; see `Opening.settled`."""
    return opening.settled(svhn=False, per_domain=0)


def find_collections(opening: Opening, *, svhn: bool) -> Files:
    """Find the files of every domain; MNIST is downloaded if need be.

    Args:
        opening: Where to look.
        svhn: Whether SVHN is wanted.

    Returns:
        Domain -> its files, by name.

    Raises:
        UsageError: One is not there, or damaged.
    """
    roots = data_roots(opening)
    usps, optdigits = USPS.find(roots, advice=MEND), OPTDIGITS.find(roots, advice=MEND) or installed_optdigits()
    house_numbers = [file.find(roots, advice=MEND_SVHN) for file in SVHN.values()] if svhn else []
    wanted = {USPS: [usps], OPTDIGITS: [optdigits], SVHN["train"]: house_numbers}
    for file, paths in wanted.items():
        if None in paths:
            option = " --domains-args svhn=true" if file.name == "SVHN" else ""
            raise UsageError(
                f"Digits: {file.name} is not there: looked for {file.path} in {', '.join(map(str, roots))}; "
                f"{ADVICE.replace('Digits`', f'Digits{option}`')}, or name a folder that has it with --data-dir"
            )
    files = {
        "mnist": (find_mnist(opening, opening.data_dir),),
        "optdigits": tuple(path for path in [optdigits] if path),
        "svhn": tuple(path for path in house_numbers if path),
        "usps": tuple(path for path in [usps] if path),
    }
    return {name: paths for name, paths in files.items() if paths}


def _known(domains: tuple[str, ...]) -> KnownCounts:
    per_digit = {"mnist": PER_MNIST_DIGIT, "optdigits": PER_OPTDIGIT, "usps": PER_USPS_DIGIT}
    totals = {name: sum(counts) for name, counts in per_digit.items()} | {"svhn": SVHN_COUNT}
    classes = {name: dict(zip(DIGITS, counts, strict=True)) for name, counts in per_digit.items()}
    return KnownCounts({name: totals[name] for name in domains}, classes=classes)


def _load(domain: str, *, files: Files, options: Mapping[str, OptionValue]) -> TensorDomain:
    images, digits = READERS[domain](files[domain])
    if count := int(options["per_domain"]):
        # Collections lie in the order of their writers: draw, and always the same.
        drawn = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:count]
        images, digits = images[drawn], digits[drawn]
    return TensorDomain(domain, resize(images, SIDE).unsqueeze(1), labels=digits.contiguous())


def _both_parts(paths: tuple[Path, ...]) -> tuple[Tensor, Tensor]:
    (root,) = paths
    train, test = read_mnist(root), read_mnist(root, part="test")
    return torch.cat([train[0], test[0]]), torch.cat([train[1], test[1]])


READERS: Mapping[str, Callable[[tuple[Path, ...]], tuple[Tensor, Tensor]]] = {
    "mnist": _both_parts,
    "optdigits": lambda paths: read_optdigits(paths[0]),
    "svhn": lambda paths: read_svhn(list(paths)),
    "usps": lambda paths: read_usps(paths[0]),
}


def resize(images: Tensor, side: int) -> Tensor:
    """Resize square images, bilinear.

    Args:
        images: (N, H, H) uint8.
        side: Pixels.

    Returns:
        (N, side, side) uint8; the same images when they have that size.

    >>> resize(torch.tensor([[[0, 100], [100, 200]]], dtype=torch.uint8), 3).tolist()
    [[[0, 50, 100], [50, 100, 150], [100, 150, 200]]]
    """
    if images.shape[1:] == (side, side) or not len(images):
        return images
    bilinear = Image.Resampling.BILINEAR
    resized = [np.asarray(Image.fromarray(image).resize((side, side), bilinear)) for image in images.numpy()]
    return torch.from_numpy(np.stack(resized))
