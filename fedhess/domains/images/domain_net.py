"""DomainNet: 345 classes in six styles (Peng et al. 2019, "Moment matching for multi-source domain adaptation").

The cleaned release, as DomainBed has it; the original one, with 596,010 images, is called by its name. Option
``classes=ten`` takes those of Zhang et al. 2023, "Federated Domain Generalization with Generalization Adjustment".
"""

from dataclasses import replace

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, KnownCounts
from fedhess.domains.images.layout import Layout
from fedhess.domains.images.release import Release, open_release
from fedhess.domains.opening import Opening

NAMES = """
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
CLASSES = tuple(NAMES.split())
TEN = (
    *("bird", "feather", "headphones", "ice_cream", "teapot"),
    *("tiger", "whale", "windmill", "wine_glass", "zebra"),
)
DOMAINS = {
    "clipart": ("clip",),
    "infograph": ("info",),
    "painting": ("paint",),
    "quickdraw": ("quick",),
    "real": (),
    "sketch": (),
}
CLEANED = (48129, 51605, 72266, 172500, 172947, 69128)  # images, in the order of the domains
ORIGINAL = (48837, 53201, 75759, 172500, 175327, 70386)
RELEASE = Release(
    layout=Layout(benchmark="DomainNet", nestings=((), ("domain_net",)), domains=DOMAINS, classes=CLASSES),
    source="Peng et al. 2019, cleaned",
    known=KnownCounts(
        dict(zip(DOMAINS, CLEANED, strict=True)),
        classes={"quickdraw": dict.fromkeys(CLASSES, 500)},
        others={"the original release, with duplicates": dict(zip(DOMAINS, ORIGINAL, strict=True))},
    ),
    repository="wltjr1007/DomainNet",
    size="18.5 GB",
    unasked=False,
)


def open_domain_net(opening: Opening) -> Benchmark:
    """Open DomainNet; see `open_release`. The complete copy has 586,575 images.

    Option ``classes`` is ``"ten"`` for those of Zhang et al., or empty for all. The hub's 18.5 GB are downloaded by
    ``python -m fedhess.data prepare DomainNet`` only, not by a run.
    """
    others = {key: value for key, value in opening.options.items() if key != "classes"}
    classes = opening.options.get("classes", "")
    if classes not in ("", "ten"):
        raise UsageError(f"DomainNet: option 'classes' must be ten, or empty for all {len(CLASSES)}, got {classes!r}")
    few = replace(RELEASE, layout=replace(RELEASE.layout, classes=TEN), known=None)
    benchmark = open_release(few if classes else RELEASE, replace(opening, options=others))
    return replace(benchmark, options={**benchmark.options, "classes": classes}) if classes else benchmark
