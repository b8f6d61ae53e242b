"""Drawings and letters from npm packages: fetched in known versions, rendered once, and checked by their pixels."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory, cached_tensor
from fedhess.domains.benchmark import OptionValue
from fedhess.domains.digits.known_file import KnownFile
from fedhess.domains.domain import TensorDomain
from fedhess.domains.download import DownloadError
from fedhess.domains.opening import Opening


def known_package(benchmark: str, scope: str, name: str, version: str, sha256: str) -> KnownFile:
    """Describe a package of npm's registry, which is kept below the folder of its benchmark."""
    return KnownFile(
        name=name,
        path=f"{benchmark}/{name}-{version}.tgz",
        checksum=f"sha256:{sha256}",
        npm=f"{scope}/{name}@{version}",
        advice=f"`python -m fedhess.data prepare {benchmark}`",
        benchmark=benchmark,
    )


def settle_side(opening: Opening, *, sides: tuple[int, ...]) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options, of which ``side`` is one of ``sides``, by default the first; see `Opening.settled`."""
    opening, options = opening.settled(side=sides[0])
    if options["side"] not in sides:
        raise UsageError(f"{opening.benchmark}: option 'side' must be one of {sides}, got {options['side']}")
    return opening, options


def locate_packages(packages: Iterable[KnownFile], opening: Opening) -> Path | None:
    """Return the folder of the packages if all are there, else None; never downloads."""
    found = [package.find(opening.places()) for package in packages]
    return found[0].parent if found[0] and all(found) else None


def prepare_packages(packages: Iterable[KnownFile], opening: Opening) -> str:
    """Fetch the missing packages; return why that failed, or nothing."""
    try:
        _renderer()  # before megabytes are fetched in vain
        for package in packages:
            package.fetch(opening.places(), notify=opening.notify)
    except (UsageError, DownloadError) as error:
        return str(error)
    return ""


def load_drawn(
    domain: str,
    render_all: Callable[[], Tensor],
    *,
    labels: Sequence[int],
    groups: Sequence[int],
    digests: Mapping[int, Mapping[str, str]],
    side: int,
    opening: Opening,
) -> TensorDomain:
    """Load a domain of drawings, rendered the first time.

    Args:
        domain: Its name.
        render_all: Renders its drawings: (N, C, side, side) uint8.
        labels: The class of each.
        groups: The group of each, see `DomainData.groups`.
        digests: What the digest of each domain must be, by side.
        side: Pixels.
        opening: Names the benchmark and the cache, and is told that drawings are being rendered.

    Raises:
        UsageError: The pixels are not the known ones, or the renderer is not installed.
    """
    name, digest = opening.benchmark, digests[side][domain]
    path = cache_directory(opening.cache_dir) / "rendered" / f"{name}-{domain}-{side}-{digest[:20]}.npy"
    if not path.exists():
        opening.notify(f"{name}: rendering {domain}")
    images = cached_tensor(path, render_all)
    data = TensorDomain(domain, images, labels=torch.tensor(labels), groups=torch.tensor(groups))
    if data.digest != digest:
        raise UsageError(
            f"{path} has other pixels than {name}: expected digest {digest}, got {data.digest}; delete it, and render "
            "it with resvg_py 0.5.0: pip install 'fedhess[styles]'"
        )
    return data


def render(drawings: Sequence[str], *, side: int) -> Tensor:
    """Render SVG files on white: (N, 3, side, side) uint8."""
    svg_to_bytes, images = _renderer(), []
    for svg in drawings:
        png = bytes(svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True))
        with Image.open(io.BytesIO(png)) as opened:
            drawing = opened.convert("RGBA")
        canvas = Image.new("RGB", (side, side), (255, 255, 255))
        canvas.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2), drawing)
        images.append(np.asarray(canvas))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _renderer() -> Any:
    try:
        from resvg_py import svg_to_bytes  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("resvg_py renders the drawings and is not installed; pip install 'fedhess[styles]'") from error
    return svg_to_bytes
