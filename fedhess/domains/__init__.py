"""Benchmarks by name: domains of labelled examples, their splits, partitions and scenarios.

:func:`open_benchmark` takes a name (of :data:`BENCHMARKS`, or of a user's data), a data directory and options, and
returns a benchmark whose domains load one by one. Opening a benchmark is cheap and reads no example, so every client
process opens it again and loads only its own domain.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.lazy import lazy_names
from fedhess.base.loading import installed

if TYPE_CHECKING:
    from fedhess.domains.benchmark import Benchmark as Benchmark
    from fedhess.domains.benchmark import OptionValue
    from fedhess.domains.benchmark import Scenario as Scenario
    from fedhess.domains.benchmark import leave_one_out as leave_one_out
    from fedhess.domains.domain import DomainData as DomainData
    from fedhess.domains.domain import Notify as Notify
    from fedhess.domains.domain import TensorDomain as TensorDomain
    from fedhess.domains.opening import Opening as Opening
    from fedhess.domains.split import split_domain as split_domain
    from fedhess.domains.split import split_indices as split_indices

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DomainData",
    "Notify",
    "Opening",
    "Scenario",
    "TensorDomain",
    "find_benchmark",
    "leave_one_out",
    "open_benchmark",
    "split_domain",
    "split_indices",
]

# Name -> module:function(Opening) -> Benchmark; imported on demand, since some need heavy libraries.
BENCHMARKS: dict[str, str] = {
    "IconPACS": "fedhess.domains.iconpacs:open_iconpacs",
    "EmojiStyles": "fedhess.domains.styles.emoji_styles:open_emoji_styles",
    "FontStyles": "fedhess.domains.styles.font_styles:open_font_styles",
    "PACS": "fedhess.domains.images.releases:open_pacs",
    "VLCS": "fedhess.domains.images.releases:open_known",
    "OfficeHome": "fedhess.domains.images.releases:open_known",
    "DomainNet": "fedhess.domains.images.releases:open_known",
    "TerraIncognita": "fedhess.domains.images.releases:open_known",
    "ColoredMNIST": "fedhess.domains.digits.colored_mnist:open_colored_mnist",
    "RotatedMNIST": "fedhess.domains.digits.rotated_mnist:open_rotated_mnist",
    "Digits": "fedhess.domains.digits.digit_collections:open_digits",
    "folder:PATH": "fedhess.domains.images.any_tree:open_folder_tree",
    "hf:NAME": "fedhess.domains.images.hugging_face:open_hugging_face",
    "module:Class": "fedhess.domains.own_data:open_own",
}
__getattr__ = lazy_names(
    __name__,
    {
        "Benchmark": "fedhess.domains.benchmark:Benchmark",
        "DomainData": "fedhess.domains.domain:DomainData",
        "Notify": "fedhess.domains.domain:Notify",
        "Opening": "fedhess.domains.opening:Opening",
        "Scenario": "fedhess.domains.benchmark:Scenario",
        "TensorDomain": "fedhess.domains.domain:TensorDomain",
        "leave_one_out": "fedhess.domains.benchmark:leave_one_out",
        "split_domain": "fedhess.domains.split:split_domain",
        "split_indices": "fedhess.domains.split:split_indices",
    },
)
FOLDER = "folder:"  # prefix of the path of any tree ROOT/DOMAIN/CLASS
HUGGING_FACE = "hf:"  # prefix of the name of any data set of Hugging Face
ENTRY_POINT_GROUP = "fedhess.benchmarks"


def open_benchmark(
    name: str,
    *,
    data_dir: Path | str | None = None,
    require_real: bool = False,
    skip_bad_images: bool = False,
    seed: int = 0,
    cache_dir: Path | str | None = None,
    held: tuple[str, ...] | None = None,
    options: Mapping[str, "OptionValue"] | None = None,
    notify: "Notify | None" = None,
) -> "Benchmark":
    """Open a benchmark by name.

    Args:
        name: One of ``BENCHMARKS``, in any case; ``folder:PATH`` for any tree PATH/DOMAIN/CLASS/images;
            ``hf:NAME?domain=COLUMN&label=COLUMN``; an entry point of group ``fedhess.benchmarks``; or
            ``package.module:Class``.
        data_dir: Folder with the data; by default ``$FEDHESS_DATA``, then the cache, then a download if one exists.
        require_real: Refuse a stand-in.
        skip_bad_images: Leave out images that cannot be decoded, and count them, instead of refusing.
        seed: For benchmarks that are made at random (ColoredMNIST, RotatedMNIST).
        cache_dir: Where downloads and derived data are kept; see `fedhess.base.files.cache_directory`.
        held: The domains whose data is on this machine, if not all are: a deployed node holds its own, a server none.
            Only these are looked for and can be loaded, and no stand-in is used.
        options: Options of the benchmark, which override the arguments above. To reopen a benchmark, pass its
            ``options``.
        notify: Called about stand-ins, downloads and other slow things.

    Raises:
        UsageError: An unknown name or option, or data that is missing, incomplete or refused.
    """
    from fedhess.domains.domain import keep_silent
    from fedhess.domains.opening import Opening

    key, path = find_benchmark(name)
    module, _, function = BENCHMARKS[key].partition(":")
    opener: Callable[[Opening], Benchmark] = getattr(import_module(module), function)
    if path is not None and "data_dir" not in (options or {}):
        if data_dir and "domains" not in (options or {}):
            raise UsageError(f"{name} and data folder {data_dir}: expected one of the two; leave the data folder out")
        data_dir = data_dir or path  # where a run's options name the domains, a node names its own folder
    return opener(
        Opening(
            benchmark=key,
            name=name.strip(),
            data_dir=Path(data_dir).expanduser() if data_dir else None,
            require_real=require_real,
            skip_bad_images=skip_bad_images,
            seed=seed,
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            held=held,
            options=dict(options or {}),
            notify=notify or keep_silent,
        )
    )


def find_benchmark(name: str) -> tuple[str, Path | None]:
    """Return a benchmark's key in ``BENCHMARKS``, and the path after ``folder:`` or None.

    Raises:
        UsageError: An unknown name.
    """
    name = name.strip()
    if name.lower() == FOLDER:
        raise UsageError("folder: expected a path after it, as in folder:photos, got nothing")
    if name.lower().startswith(FOLDER):
        return "folder:PATH", Path(name[len(FOLDER) :]).expanduser()
    if name.lower().startswith(HUGGING_FACE):
        return "hf:NAME", None
    known = {key.lower(): key for key in BENCHMARKS}
    if name.lower() not in known:
        entries = installed(ENTRY_POINT_GROUP)
        if name in entries or ":" in name:
            return "module:Class", None
        raise UsageError(f"unknown benchmark {name!r}; {did_you_mean(name, [*BENCHMARKS, *entries])}")
    return known[name.lower()], None
