"""FontStyles: the letters of the alphabet in 150 font families of five styles, each style a domain.

The families are npm packages of Fontsource (WOFF files) in known versions; `python -m fedhess.data prepare FontStyles`
fetches them, and fedhess contains none of them. A class is a letter, in capitals and in small letters, as in EMNIST's
split "letters" (Cohen et al., "EMNIST: extending MNIST to handwritten letters", IJCNN 2017). Capital I and small l,
which many fonts draw alike, are left out. Each letter is scaled to the same size and centred. Nine of a style's thirty
families are kept for targets; a source holds none of them. Display and handwriting are the targets.
"""

import io
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from torch import Tensor

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
from fedhess.domains.styles.font_families import FAMILIES, VERSION

CLASSES = tuple(ascii_lowercase)
LETTERS = (ascii_uppercase + ascii_lowercase).replace("I", "").replace("l", "")
SIDES = (32, 64)  # pixels
MARGIN = 0.1  # of the side, around a letter
KEPT_FOR_TARGETS = 9  # families of a style
PACKAGES = {
    style: {name: known_package("FontStyles", "@fontsource", name, VERSION, sha) for name, sha in families.items()}
    for style, families in FAMILIES.items()
}
DOMAINS = tuple(PACKAGES)
TARGETS = ("display", "handwriting")  # on the other three ERM reaches 97 % or more: nothing is left to rank methods by
DIGESTS: Mapping[int, Mapping[str, str]] = {
    32: {
        "display": "187d5777f80fa3530b2249f758c99a6ef5f54e8201c86594139cf9c4781d8162",
        "handwriting": "80d6e74b70e96d36a99dc13119cae1988ecdfe09bd25f341c98fcd14e9f01f86",
        "mono": "7575454123eb9417270a4d06ab60062d486499c2e1eb12fb4f5829a909aa3027",
        "sans": "bd3df850e31fdb66874997cee3b1e1d4ac0a1e013f70dcd5b13a9180ef2f52ee",
        "serif": "002b9216b7893745e5aed9034420417922843c6bde506d03022648b182d0ffce",
    },
    64: {
        "display": "d7cfab6990fdb7b1e1b91110d41980b78cae99f1857f3cb738106eae12405ba1",
        "handwriting": "ff7d0e6a3cbab3bda0355464930f02b7edcc57c647128a8397a882d6d241f165",
        "mono": "74abe4147888ad73236d8f8e135d41e8b9f7ae407b6e175c69de48f283e367f3",
        "sans": "e91cd809aa235def8453d449ac9743e479ff3d30376dd15e50566d384e630105",
        "serif": "e2746b9cbe186b0d10fe65f8537fd05b05125ede8cbc61169dddff04a5eba5d4",
    },
}
settle_font_styles = partial(settle_side, sides=SIDES)


def open_font_styles(opening: Opening) -> Benchmark:
    """Open FontStyles; display and handwriting are each left out once.

    Args:
        opening: Options: ``side`` (32 or 64 pixels); ``data_dir``, which overrules the argument.

    Returns:
        The benchmark: (1, side, side) uint8, black on white; groups are families.
    """
    opening, options = settle_font_styles(opening)
    places, side = [place.resolve() for place in opening.places()], int(options["side"])
    files = {
        style: {name: package.require(places) for name, package in PACKAGES[style].items()}
        for style in (DOMAINS if opening.held is None else opening.held)
    }
    counts = {
        style: tuple(len(families) * LETTERS.lower().count(letter) for letter in CLASSES)
        for style, families in FAMILIES.items()
    }
    return Benchmark(
        name="FontStyles",
        domains=DOMAINS,
        classes=CLASSES,
        input_shape=(1, side, side),
        outputs=len(CLASSES),
        default_model="cnn",
        scenarios=tuple(scenario for scenario in leave_one_out(DOMAINS) if scenario.name in TARGETS),
        options={**options, "data_dir": str(opening.data_dir.resolve()) if opening.data_dir else ""},
        loader=partial(_load, files=files, side=side, opening=opening),
        known=KnownCounts({style: sum(numbers) for style, numbers in counts.items()}, by_class(CLASSES, **counts)),
    )


def locate_font_styles(opening: Opening) -> Path | None:
    """Return the folder of the packages if all are there, else None; never downloads."""
    return locate_packages([package for style in PACKAGES.values() for package in style.values()], opening)


def prepare_font_styles(opening: Opening) -> str:
    """Fetch the missing packages; return why that failed, or nothing."""
    return prepare_packages([package for style in PACKAGES.values() for package in style.values()], opening)


def _load(style: str, *, files: Mapping[str, Mapping[str, Path]], side: int, opening: Opening) -> TensorDomain:
    families = files[style]

    def render_all() -> Tensor:
        return render(read_letters(families), side=side)[:, :1].contiguous()  # black on white: the channels are equal

    return load_drawn(
        style,
        render_all,
        labels=[CLASSES.index(letter.lower()) for _ in families for letter in LETTERS],
        groups=[group_of(style, family) for family in families for _ in LETTERS],
        digests=DIGESTS,
        side=side,
        opening=opening,
    )


def group_of(style: str, family: str) -> int:
    """Return the group of a family: another one for each, negative if it is kept for targets.

    >>> sorted(group_of("mono", name) for name in FAMILIES["mono"])[:10]
    [-69, -68, -67, -66, -65, -64, -63, -62, -61, 70]
    """
    ranked = sorted(FAMILIES[style], key=FAMILIES[style].__getitem__)  # by sha256: in no order of names or of looks
    number = 1 + DOMAINS.index(style) * len(ranked) + ranked.index(family)
    return -number if ranked.index(family) < KEPT_FOR_TARGETS else number


def read_letters(files: Mapping[str, Path]) -> list[str]:
    """Read every letter of each family, from its package, as SVG files."""
    from fontTools.ttLib import TTFont  # noqa: PLC0415 - an extra

    drawings = []
    for family, file in files.items():
        with tarfile.open(file) as tar:
            member = tar.extractfile(f"package/files/{family}-latin-400-normal.woff")
            assert member is not None, f"{file} has no regular weight"
            font = TTFont(io.BytesIO(member.read()))
        glyphs, names = font.getGlyphSet(), font.getBestCmap()
        drawings += [_draw(glyphs, names[ord(letter)]) for letter in LETTERS]
    return drawings


def _draw(glyphs: Any, name: str) -> str:
    """Draw a glyph as an SVG file: centred, its longer side as long as the square's but for the margins."""
    from fontTools.pens.boundsPen import BoundsPen  # noqa: PLC0415
    from fontTools.pens.svgPathPen import SVGPathPen  # noqa: PLC0415

    bounds, path = BoundsPen(glyphs), SVGPathPen(glyphs)
    glyphs[name].draw(bounds)
    glyphs[name].draw(path)
    left, bottom, right, top = bounds.bounds
    side = max(right - left, top - bottom) / (1 - 2 * MARGIN)
    box = f"{(left + right - side) / 2} {-(top + bottom + side) / 2} {side} {side}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="{box}">'
        f'<path transform="scale(1,-1)" d="{path.getCommands()}"/></svg>'
    )
