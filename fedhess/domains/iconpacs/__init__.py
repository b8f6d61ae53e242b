"""IconPACS: the seven classes of PACS drawn by four icon sets, small enough to ship; see NOTICE beside this file.

It stands in for PACS where PACS is not available. Its domains have the same names and a genuine shift of style, but
nothing measured on it is evidence about PACS. The images are fixed: they do not depend on the run's seed.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, cached_tensor, digest_of
from fedhess.domains.benchmark import Benchmark, leave_one_out
from fedhess.domains.domain import Notify, TensorDomain
from fedhess.domains.iconpacs.rendering import IMAGES_PER_CLASS, RENDERING, SIDE, render
from fedhess.domains.opening import Opening

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def open_iconpacs(opening: Opening) -> Benchmark:
    """Open IconPACS.

    Args:
        opening: ``cache_dir`` is where rendered images are kept (11.6 MB a domain). Option ``stand_in_for``: the
            benchmark that it replaces.

    Returns:
        The benchmark: four domains of 420 images, 3x96x96 uint8; groups are drawings.
    """
    stand_in_for = str(opening.read_options(stand_in_for="")["stand_in_for"]) or None
    return Benchmark(
        name="IconPACS",
        stand_in_for=stand_in_for,
        domains=DOMAINS,
        classes=CLASSES,
        input_shape=(3, SIDE, SIDE),
        outputs=len(CLASSES),
        default_model="lite0-features",
        scenarios=leave_one_out(DOMAINS),
        options={"stand_in_for": stand_in_for} if stand_in_for else {},
        loader=partial(_load, cache_dir=opening.cache_dir, notify=opening.notify),
    )


def _load(domain: str, *, cache_dir: Path | None, notify: Notify) -> TensorDomain:
    drawings = read_drawings(domain)
    recipe = digest_of(
        [RENDERING, domain, *(part for c in CLASSES for name, png in drawings[c] for part in (name, png))]
    )
    path = cache_directory(cache_dir) / "iconpacs" / f"{domain}-{recipe[:20]}.npy"
    pngs = [[png for _, png in drawings[c]] for c in CLASSES]
    if not path.exists():
        notify(f"IconPACS: rendering {domain}")
    images = cached_tensor(path, partial(render, domain, drawings=pngs))
    labels = torch.arange(len(CLASSES)).repeat_interleave(IMAGES_PER_CLASS)
    return TensorDomain(domain, images, labels=labels, groups=drawing_indices([len(p) for p in pngs]))


def read_drawings(domain: str) -> dict[str, list[tuple[str, bytes]]]:
    """Read the base drawings of one domain: class -> (file name, PNG bytes), by name."""
    root = drawings_folder() / domain
    return {c: [(file.name, file.read_bytes()) for file in sorted((root / c).glob("*.png"))] for c in CLASSES}


def drawings_folder() -> Path:
    """Find the drawings beside this file, else in the installed package, as a Flower app's bundle holds only code."""
    places = [Path(__file__).parent, *(Path(entry, *__name__.split(".")) for entry in sys.path)]
    for place in places:
        if (place / "drawings").is_dir():
            return place / "drawings"
    raise UsageError(
        "IconPACS: the drawings are not there; this code came without them, as in a Flower app's bundle: install "
        "fedhess on this machine (pip install fedhess)"
    )


def drawing_indices(counts: list[int]) -> torch.Tensor:
    """Number the drawing that each image shows, over all classes of a domain: (N,) int64.

    Args:
        counts: Drawings per class; a class uses its drawings in turn.

    >>> drawing_indices([1, 3])[58:66].tolist()
    [0, 0, 1, 2, 3, 1, 2, 3]
    """
    turns = torch.arange(IMAGES_PER_CLASS)
    firsts = torch.tensor([0, *counts]).cumsum(0)
    return torch.cat([firsts[i] + turns % count for i, count in enumerate(counts)])
