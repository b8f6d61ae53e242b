"""Fetch a benchmark from the hub through flwr-datasets and lay it out as a local folder, once."""

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from fedhess.domains.data import Notify
from fedhess.domains.network import REQUEST_SECONDS, decide

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}


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
    from huggingface_hub import HfApi  # noqa: PLC0415 (slow to import, and needed only here)

    try:
        HfApi().dataset_info(repository, timeout=REQUEST_SECONDS)
    except (OSError, ValueError, httpx.HTTPError) as error:
        return f"the hub cannot be reached: {_first_line(error)}"
    return ""


def fetch(repository: str, destination: Path, *, notify: Notify) -> str:
    """Download a data set and write it to ``destination/DOMAIN/CLASS/``, images as they are encoded.

    ``destination`` appears complete or not at all.

    Args:
        repository: ``owner/name`` on the hub, or a local folder that ``datasets.load_dataset`` reads; with the
            columns image, domain and label.
        destination: Must not exist.
        notify: Told the progress.

    Returns:
        Why it failed, or nothing.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    try:
        _export(repository, fresh, notify)
        fresh.chmod(0o755)
        if not destination.exists():  # else another process has been quicker
            os.replace(fresh, destination)
    except Exception as error:  # noqa: BLE001 - datasets, pyarrow and httpx fail in their own ways; all are reported
        return f"the download of {repository} failed: {_first_line(error)}"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ""


def _export(repository: str, folder: Path, notify: Notify) -> None:
    import datasets  # noqa: PLC0415 (slow to import, and needed only here)
    from flwr_datasets import FederatedDataset  # noqa: PLC0415
    from flwr_datasets.partitioner import NaturalIdPartitioner  # noqa: PLC0415

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    notify(f"downloading {repository}")
    partitioner = NaturalIdPartitioner(partition_by="domain")
    federated = FederatedDataset(dataset=repository, partitioners={"train": partitioner}, shuffle=False)
    for partition in range(partitioner.num_partitions if _prepared(federated) else 0):
        rows = federated.load_partition(partition).cast_column("image", datasets.Image(decode=False))
        domain, label = rows.features["domain"], rows.features["label"]
        written = 0
        for number, row in enumerate(rows):
            name = _named(domain, row["domain"])
            content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
            target = folder / name / _named(label, row["label"]) / f"{number:06d}.{_suffix(content)}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            written += 1
        notify(f"{repository}: {name}, {written} images")


def _prepared(federated: Any) -> bool:
    """Make flwr-datasets load the split, which also hands it to the partitioner."""
    federated.load_partition(0)
    return True


def _named(feature: Any, value: Any) -> str:
    """Give the name of a class label, or the value itself."""
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value)


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return SUFFIXES.get(image.format or "", "jpg")
    except OSError:
        return "jpg"  # broken: `images.scan` will name it


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
