"""Any data set of Hugging Face with columns for domain and label: ``--domains 'hf:NAME?domain=COLUMN&label=COLUMN'``.

Its images are written once, as encoded, to CACHE/hf/NAME/DOMAIN/CLASS/, and read like a folder of images.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import cache_directory, digest_of
from fedhess.domains.benchmark import Benchmark, OptionValue
from fedhess.domains.domain import Notify
from fedhess.domains.images.any_tree import open_folder_tree
from fedhess.domains.images.hub import FAILURES, fill_once, first_line, is_offline, suffix_of, why_unreachable
from fedhess.domains.images.layout import composed
from fedhess.domains.opening import Opening

UNPACKING = "2"  # change it whenever `_write` names or chooses files differently
COLUMNS: dict[str, OptionValue] = {"dataset": "", "domain": "domain", "label": "label", "image": "", "split": ""}
OF_FOLDER = ("side", "domains", "classes", "data_dir", "skip_bad_images")


def open_hugging_face(opening: Opening) -> Benchmark:
    """Open a data set of Hugging Face: its unpacked copy if there is one, else from a local path or the hub.

    Args:
        opening: ``name`` is ``hf:NAME?key=value&...``. NAME is ``owner/name`` on the hub, a folder that
            ``load_dataset`` reads, one that ``save_to_disk`` wrote, or a parquet file. Options, also after the question
            mark: ``domain`` and ``label``, names of columns; ``image``, by default the only column of images;
            ``split``, by default all splits together; and the options of a folder, see `open_folder_tree`.

    Raises:
        UsageError: It is not available (known within seconds without a network), has no such column, or a domain lacks
            a class.
    """
    opening, own = settle_hugging_face(opening)
    known = bool(opening.options.get("domains")) and opening.held == ()
    given = opening.options.get("data_dir") or opening.data_dir
    if not known and (given is None or not Path(str(given)).is_dir()):
        opening = replace(opening, data_dir=unpacked(opening, own))
        opening = replace(opening, options={key: v for key, v in opening.options.items() if key != "data_dir"})
    tree = open_folder_tree(opening)
    return replace(tree, name=f"hf:{_short(str(own['dataset']))}", options={**own, **tree.options})


def settle_hugging_face(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Read the name and the options; return the opening with the options of a folder, and the values of the others."""
    name, _, query = opening.name.partition(":")[2].partition("?")
    pairs = parse_qsl(query)  # without pairs that have no value
    if query and len(pairs) != query.count("&") + 1:
        raise UsageError(
            f"--domains {opening.name}: expected hf:NAME?key=value&key=value, got {query!r} after the mark"
        )
    options: dict[str, OptionValue] = {**dict(pairs), **opening.options}
    unknown = [key for key in options if key not in COLUMNS and key not in OF_FOLDER]
    if unknown:
        known = [*COLUMNS, *OF_FOLDER]
        raise UsageError(f"--domains {opening.name}: no option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    own = {key: str(options.get(key, default)) for key, default in COLUMNS.items()}
    own["dataset"] = own["dataset"] or name
    if not own["dataset"]:
        raise UsageError(f"--domains {opening.name}: expected a data set, as in hf:flwrlabs/pacs, got none")
    if (path := Path(own["dataset"]).expanduser()).exists():
        own["dataset"] = str(path.resolve())
    of_folder = {key: value for key, value in options.items() if key in OF_FOLDER}
    return replace(opening, options=of_folder), {key: value for key, value in own.items() if value}


def locate_hugging_face(opening: Opening) -> Path | None:
    """Return the folder that a data set was unpacked to, if there is one."""
    if not opening.name:
        return None
    opening, own = settle_hugging_face(opening)
    folder = _folder(opening, own)
    return folder if folder.exists() else None


def unpacked(opening: Opening, own: Mapping[str, OptionValue]) -> Path:
    """Return the folder of a data set's images, which appears complete or not at all."""
    folder, dataset = _folder(opening, own), str(own["dataset"])
    if folder.exists():
        return folder
    local = Path(dataset).exists()
    if not local and not is_offline() and (reason := why_unreachable(dataset)):
        raise UsageError(
            f"hf:{dataset} cannot be had ({reason}), and there is no such path here; name a copy on disk, as in "
            "hf:PATH, or set HF_HUB_OFFLINE=1 where its library has it cached"
        )

    def make(staging: Path) -> Path:
        shutil.rmtree(staging / "images", ignore_errors=True)
        _write(_load(dataset, str(own.get("split", ""))), staging / "images", own, notify=opening.notify)
        return staging / "images"

    try:
        fill_once(folder, make, opening.notify)
    except FAILURES as error:
        raise UsageError(f"hf:{dataset} cannot be read: {first_line(error)}") from error
    return folder


def _folder(opening: Opening, own: Mapping[str, OptionValue]) -> Path:
    """Name the folder by data set and columns; for a local one also by the sizes and times of change of its files."""
    path = Path(str(own["dataset"]))
    files = sorted([path, *path.rglob("*")]) if path.exists() else []
    state = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.is_file()]
    key = digest_of([UNPACKING, *(f"{name}={value}" for name, value in sorted(own.items())), *state])
    return cache_directory(opening.cache_dir) / "hf" / f"{_short(str(path)).replace('/', '--')}-{key[:16]}"


def _load(dataset: str, split: str) -> Any:
    """Return the rows of a data set: of one split, or of all of them."""
    import datasets  # noqa: PLC0415 (slow to import, and needed only here)

    datasets.disable_progress_bars()
    path = Path(dataset)
    try:
        if path.is_file():
            loaded = datasets.load_dataset(path.suffix[1:], data_files=str(path))
        elif any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(dataset)
        else:
            loaded = datasets.load_dataset(dataset)
    except (RuntimeError, datasets.exceptions.DatasetsError) as error:  # a script; a file that is not what it is called
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{reason}; save its rows as parquet where they can be read, and name that file") from error
    if not isinstance(loaded, Mapping):
        return loaded
    if split and split not in loaded:
        raise UsageError(f"hf:{dataset} has no split {split!r}; {did_you_mean(split, loaded)}")
    return loaded[split] if split else datasets.concatenate_datasets(list(loaded.values()))


def _write(rows: Any, folder: Path, own: Mapping[str, OptionValue], *, notify: Notify) -> None:
    """Write the images of a data set, as encoded, to DOMAIN/CLASS/."""
    import datasets  # noqa: PLC0415

    name, features = str(own["dataset"]), rows.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = str(own.get("image", "")) or (images[0] if len(images) == 1 else "")
    if image not in images:
        wanted = f"no column {image!r} of images" if image else f"{len(images)} columns of images"
        raise UsageError(f"hf:{name} has {wanted}; name one with image=COLUMN; its columns: {_columns(features)}")
    for key in ("domain", "label"):
        if own[key] not in features:
            raise UsageError(
                f"hf:{name} has no column {own[key]!r}; give {key}=COLUMN; its columns: {_columns(features)}"
            )
    encoded = rows.cast_column(image, datasets.Image(decode=False))
    written: dict[tuple[str, str], str] = {}  # key and folder -> the name that it stands for
    for number, row in enumerate(encoded):
        if number % 1000 == 0:
            notify(f"hf:{name}: unpacking image {number:,} of {len(rows):,}")
        names = {key: _named(features[str(own[key])], row[str(own[key])]) for key in ("domain", "label")}
        parts = [text.replace("/", "_").lstrip(".") for text in names.values()]
        content = row[image] and (row[image]["bytes"] or _file(name, row[image]["path"]).read_bytes())
        if not content or not all(parts):
            raise UsageError(f"hf:{name}: row {number} lacks its image, domain or label; filter such rows out")
        for (key, text), part in zip(names.items(), parts, strict=True):
            if (other := written.setdefault((key, part), text)) != text:
                raise UsageError(
                    f"hf:{name}: {key} {text!r} and {key} {other!r} would share the folder {part!r}; rename one of them"
                )
        where = folder.joinpath(*parts)
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{number:07d}.{suffix_of(content)}").write_bytes(content)


def _file(dataset: str, named: str) -> Path:
    """Return the file that a row names instead of an image; it must be one of the data set's own.

    Raises:
        UsageError: It is another file: a data set from a third party must not read files of this machine.
    """
    import datasets  # noqa: PLC0415
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

    path = Path(dataset)
    own = [path if path.is_dir() else path.parent]
    if not path.exists():
        fetched = Path(HF_HUB_CACHE, f"datasets--{dataset.replace('/', '--')}")
        own = [fetched, Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    file = Path(os.path.abspath(own[0] / named))
    if not any(file.is_relative_to(folder.absolute()) for folder in own):
        raise UsageError(f"hf:{dataset} has a row whose image is the file {named}, which is none of the data set's")
    return file


def _named(feature: Any, value: Any) -> str:
    """Return the name of a domain or class; an empty string if it is missing."""
    if value is None:
        return ""
    return composed(str(feature.int2str(value) if hasattr(feature, "int2str") else value)).strip()


def _columns(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())


def _short(dataset: str) -> str:
    """Shorten a path to its last part; ``owner/name`` stays."""
    return Path(dataset).name if Path(dataset).is_absolute() else dataset
