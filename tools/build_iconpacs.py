"""Build the base drawings of IconPACS from four icon packages and two fonts.

    python tools/build_iconpacs.py [--work DIR] [--out DIR]

Packages come through their ordinary clients (``npm pack``, ``apt-get download``) into ``--work`` and are checked
against the sha256 below; what is there already is not fetched again. SVG goes through resvg, webp and fonts through
Pillow. Each drawing becomes one 128 px PNG, ``OUT/DOMAIN/CLASS/NAME.png``: RGBA, or grey with alpha for the sketch
domain. Building twice with the same versions of Pillow and resvg gives the same bytes; ``OUT`` is replaced as a whole.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import resvg_py
from PIL import Image, ImageDraw, ImageFont

SIZE = 128  # pixels
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fedhess" / "domains" / "iconpacs" / "drawings"

# Unicode code points of every class. Elephant includes the mammoth; horse the jockey and the carousel horse.
GLYPHS: dict[str, tuple[str, ...]] = {
    "dog": ("1f415", "1f436", "1f429", "1f9ae", "1f415-200d-1f9ba"),
    "elephant": ("1f418", "1f9a3"),
    "giraffe": ("1f992",),
    "guitar": ("1f3b8",),
    "horse": ("1f40e", "1f434", "1f3c7", "1f3a0"),
    "house": ("1f3e0", "1f3e1", "1f3da", "1f3d8", "1f6d6"),
    "person": (
        "1f476", "1f9d2", "1f466", "1f467", "1f9d1", "1f468", "1f469", "1f9d3", "1f474", "1f475", "1f9cd", "1f6b6",
    ),
}  # fmt: skip
NOT_IN_SYMBOLA = {"1f9ae", "1f9a3", "1f6d6", "1f9cd"}

# Archive -> (client command, sha256 of the archive)
ARCHIVES: dict[str, tuple[list[str], str]] = {
    "lobehub-fluent-emoji-3d-1.1.0.tgz": (
        ["npm", "pack", "--silent", "@lobehub/fluent-emoji-3d@1.1.0"],
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "iconify-json-noto-1.2.9.tgz": (
        ["npm", "pack", "--silent", "@iconify-json/noto@1.2.9"],
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "iconify-json-twemoji-1.2.5.tgz": (
        ["npm", "pack", "--silent", "@iconify-json/twemoji@1.2.5"],
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "expo-google-fonts-noto-emoji-0.4.7.tgz": (
        ["npm", "pack", "--silent", "@expo-google-fonts/noto-emoji@0.4.7"],
        "6a25fd5a4da5bb34bbc2d300531bbf32de86afd866e119314d7e358f61a6104d",
    ),
    "fonts-symbola_2.60-1.1_all.deb": (
        ["apt-get", "download", "fonts-symbola=2.60-1.1"],
        "408244997437d4103e9cdc9dd75db29d0e5fbee6e6874536173995204033a6df",
    ),
}


def fetch(work: Path) -> None:
    """Fetch and unpack every archive into ``work``; raises SystemExit when a checksum differs."""
    for name, (command, sha256) in ARCHIVES.items():
        archive = work / name
        if not archive.exists():
            subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{archive}: expected sha256 {sha256}, got {found}; delete it and try again")
        unpacked = work / archive.stem
        if unpacked.exists():
            continue
        unpacked.mkdir()
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")


def fluent_3d(work: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, drawing) of the 3D renders."""
    assets = work / "lobehub-fluent-emoji-3d-1.1.0" / "package" / "assets"
    for class_name, glyphs in GLYPHS.items():
        for glyph in glyphs:
            path = next(p for p in (assets / f"{glyph}.webp", assets / f"{glyph}-fe0f.webp") if p.exists())
            with Image.open(path) as image:
                yield class_name, glyph, image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def iconify(work: Path, package: str) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, drawing) of an iconify SVG set."""
    root = work / package / "package"
    icons = json.loads((root / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((root / "chars.json").read_text(encoding="utf-8"))
    width, height = icons["width"], icons["height"]
    for class_name, glyphs in GLYPHS.items():
        for glyph in glyphs:
            body = icons["icons"][names[glyph]]["body"]
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'width="{SIZE}" height="{SIZE}" viewBox="0 0 {width} {height}">{body}</svg>'
            )
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
            yield class_name, glyph, Image.open(io.BytesIO(png)).convert("RGBA")


def fonts(work: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, drawing) of the two monochrome fonts; one code point a drawing, so no joined sequences."""
    files = {
        "noto": work / "expo-google-fonts-noto-emoji-0.4.7/package/400Regular/NotoEmoji_400Regular.ttf",
        "symbola": work / "fonts-symbola_2.60-1.1_all/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
    }
    for font_name, path in files.items():
        font = ImageFont.truetype(str(path), 400, layout_engine=ImageFont.Layout.BASIC)
        for class_name, glyphs in GLYPHS.items():
            for glyph in glyphs:
                if "-" in glyph or (font_name == "symbola" and glyph in NOT_IN_SYMBOLA):
                    continue
                yield class_name, f"{font_name}-{glyph}", _stroke(font, chr(int(glyph, 16)))


def _stroke(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draw one character in black, centred on a transparent square with a margin of 4 pixels."""
    canvas = Image.new("L", (800, 800))
    ImageDraw.Draw(canvas).text((100, 100), character, fill=255, font=font)
    ink = canvas.crop(canvas.getbbox())
    side = max(ink.size)
    square = Image.new("L", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    alpha = Image.new("L", (SIZE, SIZE))
    alpha.paste(square.resize((SIZE - 8, SIZE - 8), Image.Resampling.LANCZOS), (4, 4))
    return Image.merge("LA", (Image.new("L", (SIZE, SIZE)), alpha))


DOMAINS: dict[str, Callable[[Path], Iterator[tuple[str, str, Image.Image]]]] = {
    "photo": fluent_3d,
    "art_painting": lambda work: iconify(work, "iconify-json-noto-1.2.9"),
    "cartoon": lambda work: iconify(work, "iconify-json-twemoji-1.2.5"),
    "sketch": fonts,
}


def build(work: Path, out: Path) -> int:
    """Build every drawing into ``out``, replacing it. Returns the number of drawings."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    count = 0
    for domain, drawings in DOMAINS.items():
        for class_name, name, drawing in drawings(work):
            path = fresh / domain / class_name / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.save(path, optimize=True)
            count += 1
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
    return count


def main() -> None:
    """Read the command line, fetch and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/iconpacs"), help="where packages are kept")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the drawings go (replaced)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    fetch(arguments.work)
    print(f"{build(arguments.work, arguments.out)} drawings in {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
