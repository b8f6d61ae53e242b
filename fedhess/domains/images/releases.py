"""The image benchmarks known by name: the layout of each on disk, the counts of its complete copy, and its source.

PACS: Li et al. 2017, "Deeper, broader and artier domain generalization".
VLCS: Fang et al. 2013, "Unbiased metric learning". Two releases exist: DomainBed's,
ROOT/VLCS/{Caltech101,LabelMe,SUN09,VOC2007}/{bird,...}, and an older one used in domain-generalization code,
VLCS/{CALTECH,LABELME,SUN,PASCAL}/{full,train,crossval,test}/{0..4}. Of the older one, ``full`` is read if it is there,
else the three parts together.
OfficeHome: Venkateswara et al. 2017, "Deep hashing network".
DomainNet: Peng et al. 2019, "Moment matching for multi-source domain adaptation"; the cleaned release, as DomainBed has
it. Option ``classes=ten`` selects the ten of Zhang et al. 2023, "Federated Domain Generalization with Generalization
Adjustment".
TerraIncognita: Beery et al. 2018, "Recognition in Terra Incognita"; the four places and ten classes of DomainBed, in
folders as its download script makes them. Releases hold 24,330 or 24,788 images, so no count is expected.
"""

from dataclasses import replace

from fedhess.domains.benchmark import Benchmark, KnownCounts, by_class
from fedhess.domains.iconpacs import open_iconpacs
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")
OFFICE_HOME_CLASSES = """
    Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
    Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet
    Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil
    Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon
    TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""
DOMAIN_NET_CLASSES = """
    The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa aircraft_carrier airplane alarm_clock ambulance angel
    animal_migration ant anvil apple arm asparagus axe backpack banana bandage barn baseball baseball_bat basket
    basketball bat bathtub beach bear beard bed bee belt bench bicycle binoculars bird birthday_cake blackberry
    blueberry book boomerang bottlecap bowtie bracelet brain bread bridge broccoli broom bucket bulldozer bus bush
    butterfly cactus cake calculator calendar camel camera camouflage campfire candle cannon canoe car carrot castle cat
    ceiling_fan cell_phone cello chair chandelier church circle clarinet clock cloud coffee_cup compass computer cookie
    cooler couch cow crab crayon crocodile crown cruise_ship cup diamond dishwasher diving_board dog dolphin donut door
    dragon dresser drill drums duck dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan feather fence
    finger fire_hydrant fireplace firetruck fish flamingo flashlight flip_flops floor_lamp flower flying_saucer foot
    fork frog frying_pan garden garden_hose giraffe goatee golf_club grapes grass guitar hamburger hammer hand harp hat
    headphones hedgehog helicopter helmet hexagon hockey_puck hockey_stick horse hospital hot_air_balloon hot_dog
    hot_tub hourglass house house_plant hurricane ice_cream jacket jail kangaroo key keyboard knee knife ladder lantern
    laptop leaf leg light_bulb lighter lighthouse lightning line lion lipstick lobster lollipop mailbox map marker
    matches megaphone mermaid microphone microwave monkey moon mosquito motorbike mountain mouse moustache mouth mug
    mushroom nail necklace nose ocean octagon octopus onion oven owl paint_can paintbrush palm_tree panda pants
    paper_clip parachute parrot passport peanut pear peas pencil penguin piano pickup_truck picture_frame pig pillow
    pineapple pizza pliers police_car pond pool popsicle postcard potato power_outlet purse rabbit raccoon radio rain
    rainbow rake remote_control rhinoceros rifle river roller_coaster rollerskates sailboat sandwich saw saxophone
    school_bus scissors scorpion screwdriver sea_turtle see_saw shark sheep shoe shorts shovel sink skateboard skull
    skyscraper sleeping_bag smiley_face snail snake snorkel snowflake snowman soccer_ball sock speedboat spider spoon
    spreadsheet square squiggle squirrel stairs star steak stereo stethoscope stitches stop_sign stove strawberry
    streetlight string_bean submarine suitcase sun swan sweater swing_set sword syringe t-shirt table teapot teddy-bear
    telephone television tennis_racquet tent tiger toaster toe toilet tooth toothbrush toothpaste tornado tractor
    traffic_light train tree triangle trombone truck trumpet umbrella underwear van vase violin washing_machine
    watermelon waterslide whale wheel windmill wine_bottle wine_glass wristwatch yoga zebra zigzag
"""
TEN = (
    *("bird", "feather", "headphones", "ice_cream", "teapot"),
    *("tiger", "whale", "windmill", "wine_glass", "zebra"),
)
STYLES = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")  # domains of DomainNet
CLEANED = (48129, 51605, 72266, 172500, 172947, 69128)  # images in each
ORIGINAL = (48837, 53201, 75759, 172500, 175327, 70386)

RELEASES = {
    "PACS": Release(
        layout=Layout(
            benchmark="PACS",
            nestings=((), ("kfold",), ("PACS", "kfold"), ("PACS",)),
            domains={"art_painting": ("A", "art"), "cartoon": ("C",), "photo": ("P",), "sketch": ("S",)},
            classes=PACS_CLASSES,
        ),
        source="Li et al. 2017",
        known=KnownCounts(
            {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
            classes=by_class(
                PACS_CLASSES,
                art_painting=(379, 255, 285, 184, 201, 295, 449),
                cartoon=(389, 457, 346, 135, 324, 288, 405),
                photo=(189, 202, 182, 186, 199, 280, 432),
                sketch=(772, 740, 753, 608, 816, 80, 160),
            ),
        ),
        repository="flwrlabs/pacs",
        size="191 MB",
    ),
    "VLCS": Release(
        layout=Layout(
            benchmark="VLCS",
            nestings=((), ("VLCS",)),
            domains={
                "Caltech101": ("C", "Caltech", "Caltech-101"),
                "LabelMe": ("L",),
                "SUN09": ("S", "SUN"),
                "VOC2007": ("V", "VOC", "Pascal", "Pascal VOC", "PascalVOC2007"),
            },
            classes=VLCS_CLASSES,
            class_spellings={name: (str(number),) for number, name in enumerate(VLCS_CLASSES)},
            parts=(("full",), ("train", "crossval", "test")),
        ),
        source="Fang et al. 2013; DomainBed's download script fetches it",
        known=KnownCounts(
            {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376},
            classes=by_class(
                VLCS_CLASSES,
                Caltech101=(237, 123, 118, 67, 870),
                LabelMe=(80, 1209, 89, 43, 1235),
                SUN09=(21, 933, 1036, 31, 1261),
                VOC2007=(330, 699, 428, 420, 1499),
            ),
        ),
    ),
    "OfficeHome": Release(
        layout=Layout(
            benchmark="OfficeHome",
            nestings=(
                (),
                ("OfficeHomeDataset_10072016",),
                ("office_home", "OfficeHomeDataset_10072016"),
                ("office_home",),
            ),
            domains={"Art": ("A",), "Clipart": ("C",), "Product": ("P",), "Real World": ("R", "Real")},
            classes=tuple(OFFICE_HOME_CLASSES.split()),
            parts=(("train", "val"),),
        ),
        source="Venkateswara et al. 2017",
        known=KnownCounts({"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357}),
        repository="flwrlabs/office-home",
        size="1.16 GB",
    ),
    "DomainNet": Release(
        layout=Layout(
            benchmark="DomainNet",
            nestings=((), ("domain_net",)),
            domains=dict(zip(STYLES, (("clip",), ("info",), ("paint",), ("quick",), (), ()), strict=True)),
            classes=tuple(DOMAIN_NET_CLASSES.split()),
        ),
        source="Peng et al. 2019, cleaned",
        known=KnownCounts(
            dict(zip(STYLES, CLEANED, strict=True)),
            classes={"quickdraw": dict.fromkeys(DOMAIN_NET_CLASSES.split(), 500)},
            others={"the original release, with duplicates": dict(zip(STYLES, ORIGINAL, strict=True))},
        ),
        repository="wltjr1007/DomainNet",
        size="18.5 GB",
        few={"ten": TEN},
        unasked=False,
    ),
    "TerraIncognita": Release(
        layout=Layout(
            benchmark="TerraIncognita",
            nestings=((), ("terra_incognita",)),
            domains={f"location_{place}": (f"L{place}", f"loc_{place}", place) for place in ("100", "38", "43", "46")},
            classes=(
                *("bird", "bobcat", "cat", "coyote", "dog"),
                *("empty", "opossum", "rabbit", "raccoon", "squirrel"),
            ),
        ),
        source="Beery et al. 2018; DomainBed's download script fetches it",
    ),
}


def open_known(opening: Opening) -> Benchmark:
    """Open one of :data:`RELEASES`; see `open_release`."""
    return open_release(RELEASES[opening.benchmark], opening)


def open_pacs(opening: Opening) -> Benchmark:
    """Open PACS, or IconPACS where PACS cannot be had; see `open_release`."""

    def stand_in(reason: str) -> Benchmark:
        opening.notify(f"PACS cannot be had ({reason}): IconPACS stands in for it. Its results say nothing about PACS")
        return open_iconpacs(replace(opening, benchmark="IconPACS", options={"stand_in_for": "PACS"}))

    return open_release(RELEASES["PACS"], opening, stand_in=stand_in)
