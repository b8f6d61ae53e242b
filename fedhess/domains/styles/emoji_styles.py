"""EmojiStyles: emoji from six sets, each a domain; the sets draw the same things in different styles.

The sets are npm packages of Iconify (SVG in JSON) in known versions; `python -m fedhess.data prepare EmojiStyles`
fetches them, and fedhess contains none of them. A drawing's class is the category of its code point in Unicode's list,
as Noto's package has it, without people and flags. Three tenths of the code points are kept for targets. A source holds
no drawing of these code points, in any style, and a target holds no other drawings. Fluent's two sets share their
outlines.
"""

import json
import re
import tarfile
import unicodedata
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedhess.base.files import digest_of
from fedhess.domains.benchmark import Benchmark, KnownCounts, by_class, leave_one_out
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.domains.styles.drawings import (
    known_package,
    load_drawn,
    locate_packages,
    prepare_packages,
    render,
    settle_side,
)

# Class of each category of the set that names them.
CATEGORIES = {
    "Activities": "activities",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Objects": "objects",
    "Smileys & Emotion": "smileys",
    "Symbols": "symbols",
    "Travel & Places": "travel",
}
CLASSES = tuple(CATEGORIES.values())
SIDES = (64, 224)  # pixels
KEPT_FOR_TARGETS = 3  # tenths of the code points
FORMLESS = re.compile(r"(CIRCLE|SQUARE|NEW MOON SYMBOL)$")  # coloured discs and squares: in black they are all alike
VARIANT = "fe0f"  # asks for the coloured form of a code point; only some sets write it


_package = partial(known_package, "EmojiStyles", "@iconify-json")

PACKAGES = {
    package.name: package
    for package in (
        _package("emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e"),
        _package("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        _package(
            "fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"
        ),
        _package("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        _package("openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
        _package("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    )
}
DOMAINS = tuple(PACKAGES)
NAMING = "noto"  # the set whose categories are the classes
IN_WORDS = "emojione-monotone"  # the set that names its drawings by words; the other sets give their code points
DIGESTS: Mapping[int, Mapping[str, str]] = {
    64: {
        "emojione-monotone": "582f8c3025f26d922c88ff108b4cad2b4a3343a697a7eea278b7171f2abd1e4e",
        "fluent-emoji-flat": "c35c29308513653f7b7502fd215ad0d23927a5bd28e26c2d88989340a612677a",
        "fluent-emoji-high-contrast": "adeb66e3f1ec72ae7710b55d83bf33577c533cd385565d7b98c0fcd7a23f67ac",
        "noto": "7235165761dd05a5a2891aa8e4a8e1ba655998a3ac030450f882f47fd61b4009",
        "openmoji": "a920f3a2364ba891c3f326aebadffdf487da20bc8017fefd1f78137e03048c41",
        "twemoji": "6f9948cfe6b7555c38308a64108995b4fe7614d44cedd59d2027b3611044083c",
    },
    224: {
        "emojione-monotone": "e6b045ab20426516429444b4fc4831c4eccbb077795bbb2f3a18261bd9a1b901",
        "fluent-emoji-flat": "b8901fcd7b12131ed8c8f177ebd4a10ed46f68843999b386f203e2332105e3b7",
        "fluent-emoji-high-contrast": "cedab093ac2186f849807cef8db5c07f336ad6e298d280f29f3cb23fd164be02",
        "noto": "3d70fb9aad11ad63579f88d1a027a1bb50cfb7393a4a6cc3743c2c72c24ec38e",
        "openmoji": "80e1bfe6401fc4a8653368c86486a92214ac9a463e7b17071b6f3cb73bc5edf4",
        "twemoji": "67e82ecbc9381180329b28c70f7f6f92bb588cb6ccdd03907d8c87b968141149",
    },
}
COUNTS: Mapping[str, tuple[int, ...]] = {
    "emojione-monotone": (64, 109, 88, 192, 129, 216, 198),
    "fluent-emoji-flat": (85, 158, 130, 262, 168, 198, 217),
    "fluent-emoji-high-contrast": (85, 158, 130, 262, 168, 198, 217),
    "noto": (85, 161, 132, 268, 172, 226, 220),
    "openmoji": (85, 161, 132, 268, 172, 226, 220),
    "twemoji": (85, 160, 131, 266, 171, 225, 218),
}
settle_emoji_styles = partial(settle_side, sides=SIDES)


def open_emoji_styles(opening: Opening) -> Benchmark:
    """Open EmojiStyles; each set is left out once.

    Args:
        opening: Options: ``side`` (64, or 224 pixels); ``data_dir``, which overrules the argument.

    Returns:
        The benchmark: (3, side, side) uint8 on white; groups are code points.
    """
    opening, options = settle_emoji_styles(opening)
    places, side = [place.resolve() for place in opening.places()], int(options["side"])
    held = DOMAINS if opening.held is None or IN_WORDS in opening.held else opening.held
    wanted = {NAMING, *held} if held else set()
    files = {name: package.require(places) for name, package in PACKAGES.items() if name in wanted}
    return Benchmark(
        name="EmojiStyles",
        domains=DOMAINS,
        classes=CLASSES,
        input_shape=(3, side, side),
        outputs=len(CLASSES),
        default_model="lite0-features",
        scenarios=leave_one_out(DOMAINS),
        options={**options, "data_dir": str(opening.data_dir.resolve()) if opening.data_dir else ""},
        loader=partial(_load, files=files, side=side, opening=opening),
        known=KnownCounts({name: sum(counts) for name, counts in COUNTS.items()}, by_class(CLASSES, **COUNTS)),
    )


def locate_emoji_styles(opening: Opening) -> Path | None:
    """Return the folder of the packages if all are there, else None; never downloads."""
    return locate_packages(PACKAGES.values(), opening)


def prepare_emoji_styles(opening: Opening) -> str:
    """Fetch the missing packages; return why that failed, or nothing."""
    return prepare_packages(PACKAGES.values(), opening)


def _load(domain: str, *, files: Mapping[str, Path], side: int, opening: Opening) -> TensorDomain:
    drawings, codes, labels = read_drawings(domain, files)
    return load_drawn(
        domain,
        partial(render, drawings, side=side),
        labels=labels,
        groups=[group_of(code) for code in codes],
        digests=DIGESTS,
        side=side,
        opening=opening,
    )


def read_drawings(domain: str, files: Mapping[str, Path]) -> tuple[list[str], list[str], list[int]]:
    """Read the drawings of one set, by code point: SVG files, code points ``"1f415-200d-1f9ba"``, labels.

    Args:
        domain: The set.
        files: The packages of the set and of `NAMING`; for `IN_WORDS`, those of every set.
    """
    noto = _read_package(files[NAMING])
    by_name = {name: _plain(code) for code, name in noto["chars"].items()}
    labels = {
        by_name[name]: CLASSES.index(label)
        for category, label in CATEGORIES.items()
        for name in noto["metadata"]["categories"][category]
        if not FORMLESS.search(_unicode_name(by_name[name]))
    }
    own = noto if domain == NAMING else _read_package(files[domain])
    named = {_plain(code): name for code, name in own["chars"].items()}
    if not named:
        codes = _codes_by_name(labels, files)
        for name in _names(own["icons"]):
            if code := codes.get(_letters(name)):
                named.setdefault(code, name)
    there = sorted(labels.keys() & named.keys())
    return [_svg(own["icons"], named[code]) for code in there], there, [labels[code] for code in there]


def group_of(code: str) -> int:
    """Return the group of a code point: the same in every domain, negative if it is kept for targets.

    >>> group_of("1f415") == group_of("1f415"), group_of("1f415") != group_of("1f436")
    (True, True)
    """
    number = int(digest_of(["EmojiStyles", code])[:15], 16)
    return -number if number % 10 < KEPT_FOR_TARGETS else number


def _read_package(file: Path) -> dict[str, dict[str, Any]]:
    with tarfile.open(file) as tar:
        members = {name: tar.extractfile(f"package/{name}.json") for name in ("icons", "chars", "metadata")}
        return {name: json.load(member) for name, member in members.items() if member is not None}


def _codes_by_name(labels: Mapping[str, int], files: Mapping[str, Path]) -> dict[str, str]:
    """Map the letters of names to code points: Unicode's names first, then those of the sets that state both."""
    codes: dict[str, str] = {}
    for code in sorted(labels):
        if name := _unicode_name(code):
            codes.setdefault(_letters(name), code)
    for file in files.values():
        package = _read_package(file)
        by_name = {name: _plain(code) for code, name in package["chars"].items()}
        for name, code in by_name.items():
            if code in labels:
                codes.setdefault(_letters(name), code)
        for alias, entry in package["icons"].get("aliases", {}).items():
            if by_name.get(entry["parent"]) in labels and entry.keys() == {"parent"}:
                codes.setdefault(_letters(alias), by_name[entry["parent"]])
    return codes


def _names(icons: Mapping[str, Any]) -> list[str]:
    return [*icons["icons"], *(name for name, entry in icons.get("aliases", {}).items() if entry.keys() == {"parent"})]


def _svg(icons: Mapping[str, Any], name: str) -> str:
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    size = {key: icon.get(key, icons.get(key, 16)) for key in ("width", "height")}
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {size['width']} {size['height']}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size["width"]}" height="{size["height"]}" viewBox="{box}">{icon["body"]}</svg>'
    )


def _unicode_name(code: str) -> str:
    return "" if "-" in code else unicodedata.name(chr(int(code, 16)), "")


def _plain(code: str) -> str:
    return "-".join(part for part in code.split("-") if part != VARIANT)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
