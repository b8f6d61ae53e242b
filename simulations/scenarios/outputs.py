"""The result files of a measurement. They are read, and checked to be writable, before it begins.

Results name the revision that made them. Only a measuring command writes them. It refuses a tree with uncommitted
changes, whose results could not be reproduced, unless ``--allow-dirty`` is given; tables then say so.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import replace_file, writing

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path("runs") / "quick"  # quick measurements are no results

AllowDirtyOption = Annotated[
    bool, typer.Option("--allow-dirty", help="Measure with uncommitted changes too; the table says so.")
]
RenderOption = Annotated[
    bool, typer.Option("--render", help="Measure nothing: make table and figure again from the recorded results.")
]


def chosen_names(option: str, given: str, known: Collection[str]) -> list[str]:
    """Read names separated by commas, each once."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"{option}: {name!r} is none of this command's; {did_you_mean(name, known)}")
    if not names:
        raise UsageError(f"{option}: expected some of {', '.join(known)}, got nothing")
    return list(dict.fromkeys(names))


def require_ready(path: Path, *, allow_dirty: bool, render_only: bool, quick: bool = False) -> None:
    """Check that a measurement may begin: its files can be written, and reproduced from the revision they name.

    Args:
        path: The JSON file; tables and figures go beside it.
        allow_dirty: Whether results may come from a tree with uncommitted changes.
        render_only: Whether nothing is measured; then the file must exist.
        quick: Whether the measurement is quick: it is no result, and may come from any tree.
    """
    _require_writable(path)
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


def _require_writable(path: Path) -> None:
    """Check that a file can be written, in the nearest existing folder; nothing is left behind."""
    if path.suffix in (".md", ".png", ".svg"):
        raise UsageError(f"--out: expected a name in .json, got {path}, which is the name of what goes beside it")
    try:
        if path.is_dir():
            raise UsageError(f"--out: expected a file, got the folder {path}; name a file in it")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".fedhess-"):
            pass
    except OSError as error:
        raise UsageError(f"--out: cannot write to {path}: {error.strerror or error}; give another --out") from error


def is_reproducible(environment: Mapping[str, Any]) -> bool:
    """Return whether an environment names a revision without uncommitted changes."""
    return not (environment["git_revision"] or "-dirty").endswith("-dirty")


def describe_revision(environment: Mapping[str, Any]) -> str:
    """Describe the revision for a table, and say if the results cannot be reproduced from it."""
    revision = f"revision {environment['git_revision']}"
    return revision if is_reproducible(environment) else f"{revision} (UNCOMMITTED CHANGES: cannot be made again)"


def describe_environment_of(section: Mapping[str, Any]) -> str:
    """Describe for a table the machine, versions and revision with which a section of results was measured."""
    machine, versions = section["environment"], section["environment"]["versions"]
    return (
        f"{machine['platform']}, {machine['cpu_count']} cores, torch {versions['torch']}, flwr {versions['flwr']}; "
        f"{describe_revision(machine)}."
    )


def read_results(path: Path, render: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Read the results to which others are added; empty if there is no file.

    Raises:
        UsageError: The file is damaged, or holds what ``render`` cannot show.
    """
    if not path.exists():
        return {}
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        render(recorded)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"--out: {path} is damaged, or holds other results ({type(error).__name__}: {error}); delete it, or give "
            "another --out"
        ) from error
    return recorded


def write_results(path: Path, results: dict[str, Any], text: str, *, indent: int = 2) -> None:
    """Write results and, beside them, their table."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(results, indent=indent, allow_nan=False) + "\n").encode())
        replace_file(path.with_suffix(".md"), (text + "\n").encode())
