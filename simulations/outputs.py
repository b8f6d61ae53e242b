"""The files a measurement ends in: what is there is read, and that they can be written is known, before it begins."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedhess.errors import UsageError
from fedhess.runs import replace_file, writing

BESIDE = (".md", ".png", ".svg")  # endings of what goes beside the JSON file


def require_writable(path: Path) -> None:
    """See that a file can be written, in the nearest folder that is there; nothing is left behind.

    Args:
        path: The JSON file; tables and figures beside it have its name with another ending.

    Raises:
        UsageError: It cannot, or the name is that of a folder, or of the table or figure beside it.
    """
    if path.suffix in BESIDE:
        raise UsageError(f"--out: expected a name in .json, got {path}, which is the name of what goes beside it")
    try:
        if path.is_dir():
            raise UsageError(f"--out: expected a file, got the folder {path}; name a file in it")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".fedhess-"):
            pass
    except OSError as error:
        raise UsageError(f"--out: cannot write to {path}: {error.strerror or error}; give another --out") from error


def read_results(path: Path, render: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Read results that others are added to; none where there is no file.

    Args:
        path: The JSON file.
        render: Makes the table of them; what it cannot show is none of its results.

    Raises:
        UsageError: The file cannot be read, is damaged, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        render(recorded)
    except OSError as error:
        raise UsageError(f"--out: cannot read {path}: {error.strerror or error}; give another --out") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration) as error:
        raise UsageError(
            f"--out: {path} is damaged, or holds other results ({type(error).__name__}: {error}); delete it, or give "
            "another --out"
        ) from error
    return recorded


def write_results(path: Path, results: dict[str, Any], text: str, *, indent: int) -> None:
    """Write results and, beside them, their table.

    Raises:
        StorageError: They cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(results, indent=indent, allow_nan=False) + "\n").encode())
        replace_file(path.with_suffix(".md"), (text + "\n").encode())
