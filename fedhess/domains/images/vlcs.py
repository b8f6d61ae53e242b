"""VLCS: photographs of four collections (Fang et al. 2013, "Unbiased metric learning").

Two releases are about: DomainBed's, ROOT/VLCS/{Caltech101,LabelMe,SUN09,VOC2007}/{bird,...}, and the older one of
domain-generalization code, VLCS/{CALTECH,LABELME,SUN,PASCAL}/{full,train,crossval,test}/{0..4}, whose ``full`` is read
where it is there, else its three parts together.
"""

from fedhess.domains.benchmark import Benchmark, KnownCounts, by_class
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

CLASSES = ("bird", "car", "chair", "dog", "person")
RELEASE = Release(
    layout=Layout(
        benchmark="VLCS",
        nestings=((), ("VLCS",)),
        domains={
            "Caltech101": ("C", "Caltech", "Caltech-101"),
            "LabelMe": ("L",),
            "SUN09": ("S", "SUN"),
            "VOC2007": ("V", "VOC", "Pascal", "Pascal VOC", "PascalVOC2007"),
        },
        classes=CLASSES,
        class_spellings={name: (str(number),) for number, name in enumerate(CLASSES)},
        parts=(("full",), ("train", "crossval", "test")),
    ),
    source="Fang et al. 2013; DomainBed's download script fetches it",
    known=KnownCounts(
        {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376},
        classes=by_class(
            CLASSES,
            Caltech101=(237, 123, 118, 67, 870),
            LabelMe=(80, 1209, 89, 43, 1235),
            SUN09=(21, 933, 1036, 31, 1261),
            VOC2007=(330, 699, 428, 420, 1499),
        ),
    ),
)


def open_vlcs(opening: Opening) -> Benchmark:
    """Open VLCS from a local folder; see `open_release`. The complete copy has 10,729 images."""
    return open_release(RELEASE, opening)
