"""The files a measurement ends in: what is there is read, and that they can be written is known, before it begins.

Results name the revision that made them. Only a measuring command writes them, and it refuses a tree with uncommitted
changes, whose results nobody could make again, unless ``--allow-dirty`` is given; tables then say so.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing

BESIDE = (".md", ".png", ".svg")  # endings of what goes beside the JSON file

AllowDirtyOption = Annotated[
    bool, typer.Option("--allow-dirty", help="Measure with uncommitted changes too; the table says so.")
]
RenderOption = Annotated[
    bool, typer.Option("--render", help="Measure nothing: make table and figure again from the recorded results.")
]


def require_ready(path: Path, *, allow_dirty: bool, render_only: bool, quick: bool = False) -> None:
    """Check that a measurement may begin: its files can be written, and made again from the revision they name.

    Args:
        path: The JSON file.
        allow_dirty: Whether results may come from a tree with uncommitted changes.
        render_only: Whether nothing is measured; then the file must be there.
        quick: Whether what is measured is no result, and may come from any tree.

    Raises:
        UsageError: As `require_writable`; tracked files differ from the commit, or there is no git checkout; or there
            is nothing to render.
    """
    require_writable(path)
    if render_only and not path.exists():
        raise UsageError(f"--render: there is no {path}; give the --out of a measurement")
    if render_only or quick or allow_dirty:
        return
    environment = describe_environment()
    if not is_reproducible(environment):
        found = "no git checkout" if environment["git_revision"] is None else "uncommitted changes: see git status"
        raise UsageError(
            f"results name the revision that made them: expected a clean git checkout, got {found}; commit first, or "
            "add --allow-dirty (the table then says so)"
        )


def is_reproducible(environment: Mapping[str, Any]) -> bool:
    """Return whether an environment names a revision without changes."""
    return not (environment["git_revision"] or "-dirty").endswith("-dirty")


def describe_revision(environment: Mapping[str, Any]) -> str:
    """Return a table's words for the revision, saying where the results cannot be made again from it."""
    revision = f"revision {environment['git_revision']}"
    return revision if is_reproducible(environment) else f"{revision} (UNCOMMITTED CHANGES: cannot be made again)"


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
