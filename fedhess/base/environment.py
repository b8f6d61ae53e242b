"""The environment of a run: its device, and the versions and machine that config.json records."""

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedhess.base.errors import UsageError

PACKAGES = ("fedhess", "flwr", "torchvision", "numpy")
# For these models a CPU needs less time for a step on a batch than a GPU needs to launch its kernels.
QUICK_MODELS = ("mlp", "lite0-features", "lite1-features", "lite2-features")


def forbid_tf32() -> None:
    """Disable TF32 in this process: by default torch uses it for float32 convolutions on a GPU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def resolve_device(name: str, *, model: str = "", batch_size: int = 0) -> str:
    """Turn ``--device`` into an available device.

    ``auto`` selects the CPU for :data:`QUICK_MODELS`, except for full-batch steps (``batch_size`` 0): a full-batch step
    on ColoredMNIST takes a CPU half a second.
    """
    if name == "auto":
        if model in QUICK_MODELS and batch_size > 0:
            return "cpu"
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


def check_device(name: str) -> str:
    """Return the name of an available device, as `resolve_device` does; ``auto`` stays ``auto``."""
    return name if name == "auto" else resolve_device(name)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within the block; 0 keeps its present number."""
    before = torch.get_num_threads()
    if count not in (0, before):
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def describe_environment(own_code: Iterable[str] = ()) -> dict[str, Any]:
    """Describe the environment of a run: versions, revision, machine, GPUs or None, and the files of a user's own code.

    Args:
        own_code: The user's classes and functions, as ``package.module:Name``.
    """
    return {
        # torch.__version__ names the build and its CUDA version; the version of the package does not.
        "versions": _versions() | {"torch": torch.__version__},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpu": _describe_gpus() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "git_revision": _git_revision(),
        "own_code": describe_code(own_code),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe_code(paths: Iterable[str]) -> dict[str, str]:
    """Map each ``package.module:Name`` to the digest of its module's file; modules without a file here are left out."""
    found = {}
    for path in paths:
        try:
            spec = importlib.util.find_spec(path.partition(":")[0])
            if spec is not None and spec.origin:
                found[path] = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]
        except (ImportError, ValueError, OSError):
            continue
    return found


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _describe_gpus() -> dict[str, Any]:
    return {
        "names": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "driver": _nvidia_driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _git_revision() -> str | None:
    """Return the commit of the code that this process runs, with ``-dirty`` if a tracked file differs from it.

    Recorded results are ignored: a command at this revision writes them but does not run them.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    code = [":(top)", ":(top,exclude)simulations/results"]
    try:
        found = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40"], capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + ("-dirty" if changed.returncode else "")
