"""PACS: photo, art painting, cartoon, sketch (Li et al. 2017, "Deeper, broader and artier domain generalization")."""

from dataclasses import replace

from fedhess.domains.benchmark import Benchmark, KnownCounts, by_class
from fedhess.domains.iconpacs import open_iconpacs
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
RELEASE = Release(
    layout=Layout(
        benchmark="PACS",
        nestings=((), ("kfold",), ("PACS", "kfold"), ("PACS",)),
        domains={"art_painting": ("A", "art"), "cartoon": ("C",), "photo": ("P",), "sketch": ("S",)},
        classes=CLASSES,
    ),
    source="Li et al. 2017",
    known=KnownCounts(
        {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
        classes=by_class(
            CLASSES,
            art_painting=(379, 255, 285, 184, 201, 295, 449),
            cartoon=(389, 457, 346, 135, 324, 288, 405),
            photo=(189, 202, 182, 186, 199, 280, 432),
            sketch=(772, 740, 753, 608, 816, 80, 160),
        ),
    ),
    repository="flwrlabs/pacs",
    size="191 MB",
)


def open_pacs(opening: Opening) -> Benchmark:
    """Open PACS, or IconPACS where PACS cannot be had; see `open_release`. The complete copy has 9,991 images."""

    def stand_in(reason: str) -> Benchmark:
        opening.notify(f"PACS cannot be had ({reason}): IconPACS stands in for it. Its results say nothing about PACS")
        return open_iconpacs(replace(opening, benchmark="IconPACS", options={"stand_in_for": "PACS"}))

    return open_release(RELEASE, opening, stand_in=stand_in)
