"""SVHN: 99,289 house numbers from photographs (Netzer et al. 2011), the training and the test part together."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhess.domains.digits.known_file import KnownFile
from fedhess.domains.digits.matlab import read_arrays
from fedhess.domains.domain import Notify
from fedhess.domains.download import DownloadError, download
from fedhess.domains.network import why_no_answer

# Where torchvision downloads them, with its checksums.
ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
FILES = {
    "train": KnownFile("SVHN", "SVHN/train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": KnownFile("SVHN", "SVHN/test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
}
COUNT = 99_289
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's mode L has it


def read_svhn(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Read the images in grey.

    Args:
        paths: Both files.

    Returns:
        (N, 32, 32) uint8 and (N,) int64 digits.
    """
    images, digits = [], []
    for path in paths:
        arrays = read_arrays(path)
        for image in np.moveaxis(arrays["X"], 3, 0):  # one at a time: as floats they would take a gigabyte
            images.append(np.rint(image.astype(np.float32) @ GREY).astype(np.uint8))
        digits.append(arrays["y"].reshape(-1).astype(np.int64) % 10)  # 10 stands for 0
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.concatenate(digits))


def fetch_svhn(root: Path, *, notify: Notify) -> str:
    """Download the files into ``root``. Returns why it failed, or nothing."""
    for file in FILES.values():
        target = root / file.path
        url = ADDRESS + target.name
        if target.exists() and file.holds(target):
            continue
        if reason := why_no_answer([url]):
            return reason
        notify(f"downloading {url}")
        target.unlink(missing_ok=True)  # a damaged one
        try:
            download(url, target, checksum=file.checksum, notify=notify)
        except DownloadError as error:
            return str(error)
    return ""
