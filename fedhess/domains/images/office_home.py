"""OfficeHome: 65 things of office and home (Venkateswara et al. 2017, "Deep hashing network")."""

from fedhess.domains.benchmark import Benchmark, KnownCounts
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

NAMES = """
    Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
    Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet
    Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil
    Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon
    TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""
CLASSES = tuple(NAMES.split())
RELEASE = Release(
    layout=Layout(
        benchmark="OfficeHome",
        nestings=(
            (),
            ("OfficeHomeDataset_10072016",),
            ("office_home", "OfficeHomeDataset_10072016"),
            ("office_home",),
        ),
        domains={"Art": ("A",), "Clipart": ("C",), "Product": ("P",), "Real World": ("R", "Real")},
        classes=CLASSES,
        parts=(("train", "val"),),
    ),
    source="Venkateswara et al. 2017",
    known=KnownCounts({"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357}),
    repository="flwrlabs/office-home",
    size="1.16 GB",
)


def open_office_home(opening: Opening) -> Benchmark:
    """Open OfficeHome; see `open_release`. The complete copy has 15,588 images."""
    return open_release(RELEASE, opening)
