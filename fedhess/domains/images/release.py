"""An image benchmark as it is released: where it may lie, how it is downloaded, what its complete copy holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.base.files import cache_directory
from fedhess.domains.benchmark import Benchmark, KnownCounts, OptionValue, leave_one_out
from fedhess.domains.images.hub import fetch, why_unreachable
from fedhess.domains.images.image_files import ImageDomain, load_images
from fedhess.domains.images.layout import (
    Layout,
    Tree,
    describe_ignored,
    entries,
    find_domains,
    list_images,
    require_classes,
)
from fedhess.domains.opening import DATA_VARIABLE, Opening

SIDE = 224  # pixels


@dataclass(frozen=True)
class Release:
    """An image benchmark."""

    layout: Layout  # how it lies on disk
    source: str  # who made it, and where to get it by hand
    known: KnownCounts | None = None  # what its complete copy holds; None where releases differ
    repository: str = ""  # owner/name on the hub, or nothing where the hub has no copy
    size: str = ""  # of the download, for messages
    few: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # value of the option ``classes`` -> those classes
    unasked: bool = True  # whether a run downloads it; else only python -m fedhess.data prepare does

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.layout.benchmark

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        images = f", {self.known.total:,} images" if self.known else ""
        return f"{len(self.layout.domains)} domains, {len(self.layout.classes)} classes{images}: {self.source}"

    def settle(self, opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
        """Check the options; see `Opening.settled`."""
        choice: dict[str, OptionValue] = {"classes": ""} if self.few else {}
        opening, options = opening.settled(skip_bad_images=opening.skip_bad_images, **choice)
        if (chosen := options.get("classes")) and chosen not in self.few:
            raise UsageError(
                f"{self.name}: option 'classes' must be {' or '.join(self.few)}, or empty for all "
                f"{len(self.layout.classes)}, got {chosen!r}"
            )
        return opening, options

    def chosen(self, opening: Opening) -> "Release":
        """Return the release with the classes that the options choose; their counts are not known."""
        few = self.few.get(str(opening.options.get("classes", "")))
        return replace(self, layout=replace(self.layout, classes=few), known=None) if few else self

    def cached(self, opening: Opening) -> Path:
        """Return the folder that a download goes to."""
        return cache_directory(opening.cache_dir) / self.name

    def places(self, opening: Opening) -> list[Path]:
        """List the folders that are looked at, in order."""
        return opening.places(self.name)

    def find(self, opening: Opening) -> tuple[Path | None, dict[str, Path]]:
        """Find the first place that holds any of its domains, and their folders."""
        for place in self.places(opening):
            if place != self.cached(opening) or place.exists():
                folders = find_domains(place, self.layout)
                if folders or opening.data_dir is not None:
                    return place, folders
        return None, {}

    def locate(self, opening: Opening) -> Path | None:
        """Find the place that holds all of its domains, without a network; raise UsageError if some are missing."""
        place, folders = self.find(opening)
        if place is not None:
            self.require(self.layout.domains, folders, place)
        return place

    def require(self, domains: Iterable[str], folders: Mapping[str, Path], place: Path) -> None:
        """Check that a place has the folders of all the domains."""
        missing = [domain for domain in domains if domain not in folders]
        if missing:
            there = list(folders) or [entry.name for entry in entries(place)] if place.is_dir() else []
            found = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") if there else "nothing"
            raise UsageError(
                f"{self.name} in {place}: no domain {', '.join(map(repr, missing))}, found {found}; expected "
                f"{self.layout.expected(place)}"
            )

    def prepare(self, opening: Opening) -> str:
        """Download it unless it is there; return why that failed, or nothing."""
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
        if not self.repository:
            return [*ways, f"get it by hand: {self.source}"]
        return [
            *ways,
            f"run `python -m fedhess.data prepare {self.name}` where the hub can be reached ({self.repository}, "
            f"{self.size}; HF_ENDPOINT names a mirror)",
            f"copy {self.cached(opening)} from a machine where that has been done",
        ]


def open_release(
    release: Release, opening: Opening, *, stand_in: Callable[[str], Benchmark] | None = None
) -> Benchmark:
    """Open an image benchmark: from a local folder, else an earlier download, else the hub.

    Args:
        release: What to open.
        opening: Options ``data_dir`` and ``skip_bad_images`` override the arguments of the same name; ``classes`` is
            one of the release's ``few``, if it has any. With ``held`` only those domains are looked for, and nothing is
            downloaded.
        stand_in: Returns a replacement, given the reason why it is not available; unused with ``require_real``.

    Returns:
        The benchmark, images decoded to 3x224x224 uint8.

    Raises:
        UsageError: It is not available (known within seconds without a network), or a copy is incomplete.
    """
    opening, options = release.settle(opening)
    chosen, wanted = release.chosen(opening), opening.held
    layout = chosen.layout
    if wanted is None:
        wanted = tuple(layout.domains)
        asked = release.unasked or not release.repository or release.locate(opening) is not None
        reason = release.prepare(opening) if asked else f"{release.size} are not downloaded unasked"
        if reason and stand_in is not None and not opening.require_real:
            return stand_in(reason)
        if reason:
            ways = listed(release.ways(opening))
            raise UsageError(f"{release.name} is not there and cannot be had ({reason}). {ways}")
    place, folders = release.find(opening) if wanted else (None, {})
    place = place or release.places(opening)[0]
    release.require(wanted, folders, place)
    return tree_benchmark(
        release.name,
        {domain: require_classes(domain, folders[domain], layout) for domain in wanted},
        domains=tuple(layout.domains),
        classes=layout.classes,
        side=SIDE,
        opening=opening,
        options={
            "data_dir": str(place.resolve()),
            "skip_bad_images": opening.skip_bad_images,
            **{key: value for key, value in options.items() if key == "classes" and value},
        },
        known=chosen.known,
    )


def tree_benchmark(
    name: str,
    tree: Tree,
    *,
    domains: tuple[str, ...],
    classes: tuple[str, ...],
    side: int,
    opening: Opening,
    options: Mapping[str, OptionValue],
    known: KnownCounts | None = None,
) -> Benchmark:
    """Return the benchmark of an image tree; only those of its ``domains`` that are in ``tree`` can be loaded."""
    return Benchmark(
        name=name,
        domains=domains,
        classes=classes,
        input_shape=(3, side, side),
        outputs=len(classes),
        default_model="resnet18",
        scenarios=leave_one_out(domains),
        options=options,
        loader=partial(_load, tree=tree, classes=classes, side=side, opening=opening),
        known=known,
    )


def _load(domain: str, *, tree: Tree, classes: tuple[str, ...], side: int, opening: Opening) -> ImageDomain:
    if ignored := describe_ignored(domain, tree[domain]):
        opening.notify(ignored)
    return load_images(
        domain,
        list_images(tree[domain], classes),
        side=side,
        skip_bad_images=opening.skip_bad_images,
        cache_dir=opening.cache_dir,
        notify=opening.notify,
    )


def listed(ways: Iterable[str]) -> str:
    """Lay out ways to get data as numbered lines."""
    return "Ways to get it:" + "".join(f"\n  {number}. {way}" for number, way in enumerate(ways, start=1))
