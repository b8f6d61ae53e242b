"""An image benchmark as it is released: where it may lie, how it is downloaded, what its complete copy holds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory
from fedhess.domains.benchmark import Benchmark, KnownCounts, leave_one_out
from fedhess.domains.images.hub import fetch, why_unreachable
from fedhess.domains.images.image_files import ImageDomain, load_images
from fedhess.domains.images.layout import (
    Layout,
    find_domains,
    held_domains,
    list_images,
    require_classes,
    require_domains,
    survey_domains,
)
from fedhess.domains.opening import DATA_VARIABLE, Opening

SIDE = 224  # pixels


@dataclass(frozen=True)
class Release:
    """An image benchmark.

    Attributes:
        layout: How it lies on disk.
        source: Who made it, and where it comes from by hand.
        known: What its complete copy holds; None where releases differ.
        repository: ``owner/name`` on the hub, or nothing where the hub has no copy.
        size: Of the download, for messages.
        unasked: Whether a run downloads it by itself; else ``python -m fedhess.data prepare`` does.
    """

    layout: Layout
    source: str
    known: KnownCounts | None = None
    repository: str = ""
    size: str = ""
    unasked: bool = True

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.layout.benchmark

    @property
    def about(self) -> str:
        """Say in a few words what it is."""
        images = f", {self.known.total:,} images" if self.known else ""
        return f"{len(self.layout.domains)} domains, {len(self.layout.classes)} classes{images}: {self.source}"

    def cached(self, opening: Opening) -> Path:
        """Give the folder that a download goes to."""
        return cache_directory(opening.cache_dir) / self.name

    def settle(self, opening: Opening) -> Opening:
        """Check the options and do what they say: ``data_dir`` and ``skip_bad_images`` overrule the opening's own.

        Raises:
            UsageError: An unknown option, or a value of another type.
        """
        return opening.settled(skip_bad_images=opening.skip_bad_images)[0]

    def places(self, opening: Opening) -> list[Path]:
        """List the folders that are looked at, in order."""
        if opening.data_dir is not None:
            return [opening.data_dir]
        named = [Path(os.environ[DATA_VARIABLE]).expanduser()] if os.environ.get(DATA_VARIABLE) else []
        return [*named, self.cached(opening)]

    def locate(self, opening: Opening) -> Path | None:
        """Find it without a network.

        Args:
            opening: Its ``data_dir`` is looked at alone when given.

        Returns:
            The folder that `find_domains` finds its domains in, or None.

        Raises:
            UsageError: A folder was given and holds no complete copy, or another holds a part of one.
        """
        if opening.data_dir is not None:
            require_domains(opening.data_dir, self.layout)
            return opening.data_dir
        for place in self.places(opening):
            if (place != self.cached(opening) or place.exists()) and find_domains(place, self.layout):
                return place
        return None

    def locate_held(self, opening: Opening) -> Path:
        """Find the folder that holds the domains of this machine: the first place that has one, else the first.

        Args:
            opening: As for `locate`; ``held`` names the domains, none of which need not be looked for.
        """
        places = self.places(opening)
        there = [place for place in places if opening.held and place.is_dir()]
        return next((place for place in there if survey_domains(place, self.layout)), places[0])

    def prepare(self, opening: Opening) -> str:
        """Download it, unless it is there; what an interrupted download has fetched is kept and used.

        Args:
            opening: For the cache directory and ``notify``.

        Returns:
            Why it cannot be had, or nothing.

        Raises:
            UsageError: As `locate`.
        """
        if self.locate(opening) is not None:
            return ""
        if not self.repository:
            return "the hub has no copy of it"
        return why_unreachable(self.repository) or fetch(
            self.repository, self.cached(opening), layout=self.layout, notify=opening.notify
        )

    def ways(self, opening: Opening) -> list[str]:
        """List the ways to get it, as lines for a message."""
        ways = [f"give a folder with {self.layout.expected(Path('ROOT'))}: --data-dir ROOT, or {DATA_VARIABLE}=ROOT"]
        if self.repository:
            ways.append(
                f"run `python -m fedhess.data prepare {self.name}` where the hub can be reached ({self.repository}, "
                f"{self.size}; HF_ENDPOINT names a mirror)"
            )
            ways.append(f"copy {self.cached(opening)} from a machine where that has been done")
        else:
            ways.append(f"get it by hand: {self.source}")
        return ways


def open_release(release: Release, opening: Opening) -> Benchmark:
    """Open an image benchmark: from a local folder, else what was downloaded, else the hub.

    Args:
        release: What to open.
        opening: Options ``data_dir`` and ``skip_bad_images`` overrule the arguments of the same name.

    Returns:
        The benchmark, images decoded to 3x224x224 uint8.

    Raises:
        UsageError: It cannot be had (said within seconds when there is no network), or a copy is incomplete.
    """
    found, reason = try_release(release, opening)
    if found is None:
        lines = "".join(f"\n  {number}. {way}" for number, way in enumerate(release.ways(opening), start=1))
        raise UsageError(f"{release.name} is not there and cannot be had ({reason}). Ways to get it:{lines}")
    return found


def try_release(release: Release, opening: Opening) -> tuple[Benchmark | None, str]:
    """Open an image benchmark, or say why it cannot be had; see `open_release`."""
    opening = release.settle(opening)
    if opening.held is not None:  # a deployed machine: what it holds is there, and nothing is downloaded
        where = release.locate_held(opening)
        return _opened(release, where, opening, held_domains(where, release.layout, opening.held)), ""
    root = release.locate(opening)
    if root is None and release.repository and not release.unasked:
        return None, f"{release.size} are not downloaded unasked"
    if root is None:
        if reason := release.prepare(opening):
            return None, reason
        root = release.cached(opening)
    return _opened(release, root, opening, require_domains(root, release.layout)), ""


def _opened(release: Release, root: Path, opening: Opening, folders: Mapping[str, Path]) -> Benchmark:
    layout = release.layout
    for domain, folder in folders.items():
        require_classes(domain, folder, layout)
    domains = tuple(layout.domains)
    return Benchmark(
        name=release.name,
        domains=domains,
        classes=layout.classes,
        input_shape=(3, SIDE, SIDE),
        outputs=len(layout.classes),
        default_model="resnet18",
        scenarios=leave_one_out(domains),
        options={"data_dir": str(root.resolve()), "skip_bad_images": opening.skip_bad_images},
        loader=partial(_load, folders=folders, layout=layout, opening=opening),
        known=release.known,
    )


def _load(domain: str, *, folders: Mapping[str, Path], layout: Layout, opening: Opening) -> ImageDomain:
    return load_images(
        domain,
        list_images(domain, folders[domain], layout),
        side=SIDE,
        skip_bad_images=opening.skip_bad_images,
        cache_dir=opening.cache_dir,
        notify=opening.notify,
    )
