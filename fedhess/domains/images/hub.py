"""Fetch a benchmark from the hub, file by file, and lay it out as a local folder, once."""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from fedhess.domains.domain import Notify
from fedhess.domains.download import download
from fedhess.domains.images.layout import Layout
from fedhess.domains.network import REQUEST_SECONDS, decide

if sys.platform != "win32":
    import fcntl

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
ENDPOINT_VARIABLE = "HF_ENDPOINT"
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
ROWS = 64  # unpacked at a time


@dataclass(frozen=True)
class _Shard:
    """A parquet file of a repository: its path there, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


def why_unreachable(repository: str) -> str:
    """Ask the hub for a data set's description, within `network.DECISION_SECONDS`.

    The hub's own libraries retry for minutes without a network.

    Args:
        repository: ``owner/name``.

    Returns:
        Why it cannot be had, or nothing when it can.
    """
    for variable in OFFLINE_VARIABLES:
        if os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}:
            return f"{variable} is set"
    return decide(lambda: _ask(repository))


def _ask(repository: str) -> str:
    try:
        _describe(repository)
    except (OSError, ValueError, httpx.HTTPError) as error:
        return f"the hub cannot be reached: {_first_line(error)}"
    return ""


def _describe(repository: str, *, files: bool = False) -> Any:
    """Ask the hub what is in a repository."""
    from huggingface_hub import HfApi  # noqa: PLC0415 (slow to import, and needed only here)

    api = HfApi(endpoint=os.environ.get(ENDPOINT_VARIABLE))
    return api.dataset_info(repository, timeout=REQUEST_SECONDS, files_metadata=files)


def fetch(repository: str, destination: Path, *, layout: Layout, notify: Notify) -> str:
    """Download a data set and write it to ``destination/DOMAIN/CLASS/``, images as they are encoded.

    ``destination`` appears complete or not at all. Until then everything is in ``.NAME.partial`` beside it: an
    interrupted download goes on there, within a file and from file to file. A file's sha256 is checked, then it is
    unpacked a few rows at a time and deleted: the disk holds the images and one file, the memory a few images.

    Args:
        repository: ``owner/name`` on the hub: parquet files with the columns image, domain and label.
        destination: Must not exist, or be empty.
        layout: Names the folders; a row of any other domain or class ends the download.
        notify: Told the progress.

    Returns:
        Why it failed, or nothing.
    """
    staging = destination.with_name(f".{destination.name}.partial")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with _alone(staging, notify):
            if destination.is_dir() and not any(destination.iterdir()):
                destination.rmdir()
            if not destination.exists():  # else another process has been quicker
                _fetch(repository, staging, layout=layout, notify=notify)
                os.replace(staging / "images", destination)
        shutil.rmtree(staging, ignore_errors=True)
    except (OSError, ValueError, LookupError, httpx.HTTPError) as error:
        return f"the download of {repository} failed: {_first_line(error)}"
    return ""


def _fetch(repository: str, staging: Path, *, layout: Layout, notify: Notify) -> None:
    from huggingface_hub import get_token, hf_hub_url  # noqa: PLC0415

    revision, shards = _shards(repository)
    _keep_revision(staging, revision)
    images, done = staging / "images", staging / "done"
    for folder in (images, done):
        folder.mkdir(exist_ok=True)
    left = [shard for number, shard in enumerate(shards) if not (done / str(number)).exists()]
    _require_space(staging, sum(shard.size for shard in left) + max((shard.size for shard in left), default=0))
    endpoint, token = os.environ.get(ENDPOINT_VARIABLE), get_token()
    for number, shard in enumerate(shards):
        if (done / str(number)).exists():
            continue
        notify(f"{repository}: file {number + 1} of {len(shards)}, {shard.name}, {shard.size / 1e6:,.0f} MB")
        packed = staging / f"{number}.parquet"
        download(
            hf_hub_url(repository, shard.name, repo_type="dataset", revision=revision, endpoint=endpoint),
            packed,
            checksum=f"sha256:{shard.sha256}",
            size=shard.size,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            notify=notify,
        )
        count = _unpack(packed, images, prefix=f"{number:03d}", layout=layout)
        notify(f"{repository}: {shard.name}, {count:,} images unpacked")
        (done / str(number)).write_text(str(count))
        packed.unlink()
    record = {"repository": repository, "revision": revision, "sha256": {s.name: s.sha256 for s in shards}}
    (images / "source.json").write_text(json.dumps(record, indent=2) + "\n")


def _shards(repository: str) -> tuple[str, list[_Shard]]:
    """List a repository's parquet files at its present revision."""
    info = _describe(repository, files=True)
    shards = [
        _Shard(name=file.rfilename, size=file.lfs.size, sha256=file.lfs.sha256)
        for file in info.siblings or []
        if file.rfilename.endswith(".parquet") and file.lfs is not None
    ]
    if not shards:
        raise ValueError(f"no parquet file with a checksum in it, revision {info.sha}")
    return str(info.sha), sorted(shards, key=lambda shard: shard.name)


def _keep_revision(staging: Path, revision: str) -> None:
    """Begin anew if what is there was begun from another revision."""
    note = staging / "revision"
    if note.exists() and note.read_text() != revision:
        for entry in staging.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.suffix in {".parquet", ".part"}:
                entry.unlink()
    note.write_text(revision)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")


def _unpack(packed: Path, folder: Path, *, prefix: str, layout: Layout) -> int:
    """Write the images of a parquet file to DOMAIN/CLASS/; returns how many.

    They are named by file and row, so their order, by which DomainBed splits, need not be that of the release.
    """
    import datasets  # noqa: PLC0415 (slow to import, and needed only here)
    from pyarrow import parquet  # noqa: PLC0415

    number = 0
    made: set[Path] = set()
    with parquet.ParquetFile(packed) as file:
        features: Mapping[str, Any] = datasets.Features.from_arrow_schema(file.schema_arrow)
        for batch in file.iter_batches(batch_size=ROWS, columns=["image", "domain", "label"]):
            for row in batch.to_pylist():
                where = folder / _folder_of(features, row, layout)
                if where not in made:
                    where.mkdir(parents=True, exist_ok=True)
                    made.add(where)
                content = row["image"]["bytes"]
                if content is None:
                    raise ValueError(f"row {number} of {packed.name} has no image in it")
                (where / f"{prefix}_{number:06d}.{_suffix(content)}").write_bytes(content)
                number += 1
    return number


def _folder_of(features: Mapping[str, Any], row: Mapping[str, Any], layout: Layout) -> Path:
    """Give DOMAIN/CLASS of a row, by the layout's own names."""
    given = {key: _named(features[key], row[key]) for key in ("domain", "label")}
    domain, label = layout.domain_named(given["domain"]), layout.class_named(given["label"])
    if domain is None or label is None:
        raise ValueError(f"a row of domain {given['domain']!r}, class {given['label']!r}, not of {layout.benchmark}")
    return Path(domain, label)


def _named(feature: Any, value: Any) -> str:
    """Give the name of a class label, or the value itself."""
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value)


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return SUFFIXES.get(image.format or "", "jpg")
    except OSError:
        return "jpg"  # broken: `images.scan` will name it


@contextmanager
def _alone(folder: Path, notify: Notify) -> Iterator[None]:
    """Keep other processes from the same download: they wait."""
    with (folder / "lock").open("w") as held:
        if sys.platform != "win32":
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notify(f"another process downloads to {folder}: waiting for it")
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
