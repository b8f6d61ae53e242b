"""What a run runs on: the device that was asked for, and the versions and machine that config.json records."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedhess.errors import UsageError

PACKAGES = ("fedhess", "flwr", "torchvision", "numpy")


def resolve_device(name: str) -> str:
    """Turn ``--device`` into a device that is there.

    Raises:
        UsageError: The device is unknown or absent.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match.group(1) or 0) >= count:
            raise UsageError(f"--device {name}: torch sees {count} CUDA device(s); use --device auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Apple GPU; use --device auto or cpu")
    return name


def device_here(name: str) -> str:
    """Return the device that this process uses; ``cuda`` may be that of workers elsewhere, which resolve it again.

    >>> device_here("cpu")
    'cpu'
    """
    elsewhere = name == "cuda" and not torch.cuda.is_available()
    return resolve_device("auto") if name == "auto" or elsewhere else name


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads within the block; 0 leaves it to torch."""
    before = torch.get_num_threads()
    if count not in (0, before):
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def describe_environment() -> dict[str, Any]:
    """Describe what a run ran on: versions, revision, machine."""
    return {
        # torch's own version says which build it is, for which CUDA; its package's does not.
        "versions": {name: version(name) for name in PACKAGES} | {"torch": torch.__version__},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "git_revision": _git_revision(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
