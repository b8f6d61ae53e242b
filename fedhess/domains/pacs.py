"""PACS: photo, art painting, cartoon, sketch (Li et al. 2017, "Deeper, broader and artier domain generalization")."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedhess.cache import cache_directory
from fedhess.domains.benchmark import Benchmark, leave_one_out
from fedhess.domains.folder import Layout, find_domains, held_domains, list_images, require_domains
from fedhess.domains.hub import fetch, why_unreachable
from fedhess.domains.iconpacs import open_iconpacs
from fedhess.domains.images import ImageDomain, load_images
from fedhess.domains.options import DATA_VARIABLE, Opening
from fedhess.errors import UsageError

REPOSITORY = "flwrlabs/pacs"  # 191 MB
SIDE = 224  # pixels; the files have 227
LAYOUT = Layout(
    benchmark="PACS",
    nestings=((), ("kfold",), ("PACS", "kfold"), ("PACS",)),
    domains={"art_painting": ("A", "art"), "cartoon": ("C",), "photo": ("P",), "sketch": ("S",)},
    classes=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
)


def open_pacs(opening: Opening) -> Benchmark:
    """Open PACS: from a local folder, else what an earlier run downloaded, else the hub, else IconPACS as a stand-in.

    Without a network the decision takes a few seconds, see `hub.why_unreachable`.

    Args:
        opening: Options ``data_dir`` and ``skip_bad_images`` overrule the arguments of the same name.

    Returns:
        PACS (9,991 images in the complete copy, decoded to 3x224x224 uint8), or IconPACS with ``stand_in_for`` set.

    Raises:
        UsageError: A folder was given and is missing, empty or incomplete; or PACS cannot be had and ``require_real``
            is set.
    """
    options = opening.read_options(data_dir=str(opening.data_dir or ""), skip_bad_images=opening.skip_bad_images)
    opening = replace(opening, skip_bad_images=bool(options["skip_bad_images"]))
    if opening.held is not None:
        root = Path(
            str(options["data_dir"]) or os.environ.get(DATA_VARIABLE) or cache_directory(opening.cache_dir) / "PACS"
        )
        return _real(root, held_domains(root.expanduser(), LAYOUT, opening.held), opening)
    if options["data_dir"]:
        root = Path(str(options["data_dir"])).expanduser()
        return _real(root, require_domains(root, LAYOUT), opening)
    if os.environ.get(DATA_VARIABLE):
        root = Path(os.environ[DATA_VARIABLE]).expanduser()
        if found := find_domains(root, LAYOUT):
            return _real(root, found, opening)
    root = cache_directory(opening.cache_dir) / "PACS"
    reason = "" if root.exists() else why_unreachable(REPOSITORY) or fetch(REPOSITORY, root, notify=opening.notify)
    if not reason:
        return _real(root, require_domains(root, LAYOUT), opening)
    if opening.require_real:
        raise UsageError(_ways(reason, root))
    opening.notify(f"PACS cannot be had ({reason}): IconPACS stands in for it. Its results say nothing about PACS")
    return open_iconpacs(replace(opening, benchmark="IconPACS", options={"stand_in_for": "PACS"}))


def _ways(reason: str, cached: Path) -> str:
    return (
        f"PACS itself is required and cannot be had ({reason}). Three ways to get it:\n"
        f"  1. give a folder with {LAYOUT.expected(Path('ROOT'))}: --data-dir ROOT, or {DATA_VARIABLE}=ROOT\n"
        f"  2. run once where the hub can be reached ({REPOSITORY}, 191 MB; HF_ENDPOINT names a mirror)\n"
        f"  3. copy {cached} from a machine where such a run has been made"
    )


def _real(root: Path, folders: dict[str, Path], opening: Opening) -> Benchmark:
    for domain, folder in folders.items():
        list_images(domain, folder, LAYOUT.classes)  # raises for a missing or empty class
    domains = tuple(LAYOUT.domains)
    return Benchmark(
        name="PACS",
        domains=domains,
        classes=LAYOUT.classes,
        input_shape=(3, SIDE, SIDE),
        outputs=len(LAYOUT.classes),
        default_model="resnet18",
        scenarios=leave_one_out(domains),
        options={"data_dir": str(root.resolve()), "skip_bad_images": opening.skip_bad_images},
        loader=partial(_load, folders=folders, opening=opening),
    )


def _load(domain: str, *, folders: dict[str, Path], opening: Opening) -> ImageDomain:
    return load_images(
        domain,
        list_images(domain, folders[domain], LAYOUT.classes),
        side=SIDE,
        skip_bad_images=opening.skip_bad_images,
        cache_dir=opening.cache_dir,
        notify=opening.notify,
    )
