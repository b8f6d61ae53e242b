"""Optdigits: 1,797 digits of 8x8 pixels (Alpaydin and Kaynak 1998, CC BY 4.0), as scikit-learn carries them.

Only the file is wanted, 57 kB: it is read where scikit-learn is installed, without importing it, and else taken out of
its package, so that nobody has to install scikit-learn and SciPy for it.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhess.domains.digits.known_file import KnownFile, fetch_with_pip
from fedhess.domains.domain import Notify

FILE = KnownFile(
    name="optdigits",
    path="optdigits/digits.csv.gz",
    checksum="sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
PER_DIGIT = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
INSTALLED = "datasets/data/digits.csv.gz"  # below the package sklearn
# Any machine can take the file out of this one.
WHEEL = ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
WHEEL += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64"]


def installed_optdigits() -> Path | None:
    """Find the file in an installed scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = (Path(place, INSTALLED) for place in places)
    return next((path for path in found if path.exists() and FILE.holds(path)), None)


def read_optdigits(path: Path) -> tuple[Tensor, Tensor]:
    """Read the images.

    Args:
        path: A file that `FILE` or `installed_optdigits` has found.

    Returns:
        (1797, 8, 8) uint8, white on black, and (1797,) int64 digits.
    """
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)  # they count to 16
    return torch.from_numpy(pixels.reshape(-1, 8, 8)), torch.from_numpy(table[:, -1].copy())


def fetch_optdigits(root: Path, *, notify: Notify) -> str:
    """Fetch the file into ``root``; see `fetch_with_pip`. Returns why it failed, or nothing."""
    return fetch_with_pip(
        FILE,
        root,
        requirement="scikit-learn==1.9.1",
        member=f"sklearn/{INSTALLED}",
        options=WHEEL,
        notify=notify,
    )
