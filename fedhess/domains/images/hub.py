"""Fetch a benchmark from the hub, file by file, and lay it out as a local folder, once."""

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from PIL import Image

from fedhess.domains.domain import Notify
from fedhess.domains.download import REQUEST_SECONDS, decide, has_checksum
from fedhess.domains.images.layout import Layout, spelling

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
FAILURES = (OSError, ValueError, LookupError, httpx.HTTPError)
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
ROWS = 64  # unpacked at a time


def why_unreachable(repository: str, *, kind: str = "dataset") -> str:
    """Return why a data set (``owner/name``) or a model is not available, or nothing.

    It takes at most `download.DECISION_SECONDS`; the hub's own library retries for minutes without a network.
    """
    if variable := is_offline():
        return f"{variable} is set"

    def ask() -> str:
        try:
            _api().repo_info(repository, repo_type=kind, timeout=REQUEST_SECONDS)
        except FAILURES as error:
            return f"the hub cannot be reached: {first_line(error)}"
        return ""

    return decide(ask)


def is_offline() -> str:
    """Return the environment variable that forbids access to the hub, or nothing."""
    set_to = {variable: os.environ.get(variable, "").lower() for variable in OFFLINE_VARIABLES}
    return next((variable for variable, value in set_to.items() if value in {"1", "true", "yes", "on"}), "")


def fetch(repository: str, destination: Path, *, layout: Layout, notify: Notify) -> str:
    """Download a data set and write its images, as encoded, to ``destination/DOMAIN/CLASS/``.

    ``destination`` appears complete or not at all. Until then everything is in ``.NAME.partial`` beside it, and an
    interrupted download continues there with the next file. After its sha256 is checked, a file is unpacked a few rows
    at a time and deleted, so that the disk holds the images and one file, and memory holds a few images.

    Args:
        repository: ``owner/name`` on the hub: parquet files with the columns image, domain and label.
        destination: Must not exist, or be empty.
        layout: Names the folders; a row of any other domain or class ends the download.
        notify: Called with progress.

    Returns:
        Why it failed, or nothing.
    """
    try:
        fill_once(destination, lambda staging: _fetch(repository, staging, layout=layout, notify=notify), notify)
    except FAILURES as error:
        return f"the download of {repository} failed: {first_line(error)}"
    return ""


def _fetch(repository: str, staging: Path, *, layout: Layout, notify: Notify) -> Path:
    """Download and unpack the missing files of a data set's current revision; return the folder of the images."""
    api = _api()
    info = api.dataset_info(repository, timeout=REQUEST_SECONDS, files_metadata=True)
    files = [file for file in info.siblings or [] if file.rfilename.endswith(".parquet") and file.lfs is not None]
    if not files:
        raise ValueError(f"no parquet file with a checksum in it, revision {info.sha}")
    files.sort(key=lambda file: file.rfilename)
    work = staging / str(info.sha)
    images = work / "images"
    images.mkdir(parents=True, exist_ok=True)
    left = [file.lfs.size for number, file in enumerate(files) if not (work / f"{number}.done").exists()]
    free, needed = shutil.disk_usage(staging).free, sum(left) + max(left, default=0)
    if free < needed:
        raise OSError(f"{staging.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")
    for number, file in enumerate(files):
        done = work / f"{number}.done"
        if done.exists():
            continue
        name = file.rfilename
        notify(f"{repository}: file {number + 1} of {len(files)}, {name}, {file.lfs.size / 1e6:,.0f} MB")
        packed = Path(api.hf_hub_download(repository, name, repo_type="dataset", revision=info.sha, local_dir=work))
        if not has_checksum(packed, f"sha256:{file.lfs.sha256}"):
            packed.unlink()
            raise OSError(f"{name}: expected sha256 {file.lfs.sha256}, got another content; it is deleted, try again")
        count = _unpack(packed, images, prefix=f"{number:03d}", layout=layout)
        notify(f"{repository}: {name}, {count:,} images unpacked")
        done.touch()
        packed.unlink()
    record = {"repository": repository, "revision": info.sha, "sha256": {f.rfilename: f.lfs.sha256 for f in files}}
    (images / "source.json").write_text(json.dumps(record, indent=2) + "\n")
    return images


def fill_once(folder: Path, make: Callable[[Path], Path], notify: Notify) -> None:
    """Move to ``folder`` what ``make`` returns in a staging folder beside it; wait for another process that does so."""
    staging = folder.with_name(f".{folder.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    lock = FileLock(staging / "lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        notify(f"another process downloads to {staging}: waiting for it")
        held = lock.acquire()
    with held:
        if not folder.exists() or not any(folder.iterdir()):  # else another process was first
            os.replace(make(staging), folder)
    shutil.rmtree(staging, ignore_errors=True)


def _api() -> Any:
    from huggingface_hub import HfApi  # noqa: PLC0415 (slow to import, and needed only here)
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _unpack(packed: Path, folder: Path, *, prefix: str, layout: Layout) -> int:
    """Write the images of a parquet file to DOMAIN/CLASS/; returns how many.

    Images are named by file and row, so their order, which DomainBed's split depends on, may differ from the release.
    """
    import datasets  # noqa: PLC0415 (slow to import, and needed only here)
    from pyarrow import parquet  # noqa: PLC0415

    number = 0
    with parquet.ParquetFile(packed) as file:
        features: Mapping[str, Any] = datasets.Features.from_arrow_schema(file.schema_arrow)
        for batch in file.iter_batches(batch_size=ROWS, columns=["image", "domain", "label"]):
            for row in batch.to_pylist():
                where = folder / _folder_of(features, row, layout)
                where.mkdir(parents=True, exist_ok=True)
                content = row["image"]["bytes"]
                if content is None:
                    raise ValueError(f"row {number} of {packed.name} has no image in it")
                (where / f"{prefix}_{number:06d}.{suffix_of(content)}").write_bytes(content)
                number += 1
    return number


def _folder_of(features: Mapping[str, Any], row: Mapping[str, Any], layout: Layout) -> Path:
    """Return DOMAIN/CLASS of a row, by the layout's own names."""
    given = {}
    for key in ("domain", "label"):
        feature, value = features[key], row[key]
        given[key] = str(feature.int2str(value) if hasattr(feature, "int2str") else value)
    domain = layout.spelled_domains.get(spelling(given["domain"]))
    label = layout.spelled_classes.get(spelling(given["label"]))
    if domain is None or label is None:
        raise ValueError(f"a row of domain {given['domain']!r}, class {given['label']!r}, not of {layout.benchmark}")
    return Path(domain, label)


def suffix_of(content: bytes) -> str:
    """Return the file suffix for an encoded image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return SUFFIXES.get(image.format or "", "jpg")
    except OSError:
        return "jpg"  # broken: `image_files.scan` reports it


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
