"""The directory of a job: begun once, resumed only as it was begun, used by one process at a time."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file
from fedhess.jobs.selectors import DEFAULT

if sys.platform != "win32":
    import fcntl

# A resumed job may differ in these: they decide how long to wait and what to keep, not what comes out.
FREE_SETTINGS = tuple(
    f"settings.{name}" for name in ("deadline", "exchange_deadline", "checkpoint_every", "images", "image_cache_gb")
)


@contextmanager
def job_directory(
    path: Path,
    description: Mapping[str, Any],
    *,
    resume: bool,
    selection: str = DEFAULT,
    options: tuple[str, str] = ("--out", "--resume"),
) -> Iterator[list[str]]:
    """Make a job's directory and its config.json, or check those of the job to resume; keep other processes out.

    A job that was killed before it had written config.json is resumed by beginning it.

    Args:
        path: The directory.
        description: What determines the results, as JSON.
        resume: Whether the directory may be that of an interrupted job.
        selection: How round and variant are selected, recorded when the job begins; see `record_selection`.
        options: The options that messages name: of the directory, and of resuming.

    Yields:
        What is different of the environment that the job was begun in: bits may differ then.

    Raises:
        UsageError: The directory is in use, cannot be written, or was made with another configuration.
    """
    config_file = path / "config.json"
    changes: list[str] = []
    of_directory, of_resuming = options
    if not resume:
        require_unused(path)
    with ExitStack() as lock:
        try:
            if resume and _is_used(path) and not config_file.exists():
                raise UsageError(
                    f"{of_resuming}: there is no {config_file}; give {of_directory} the directory of the job to "
                    "continue"
                )
            path.mkdir(parents=True, exist_ok=True)
            _lock(path, lock, of_directory)
            if not resume:
                require_unused(path)  # another process may have been here since
            if _is_used(path):
                changes = _check_same(config_file, description, of_resuming)
            else:
                record = {**description, "selection": selection, "environment": describe_environment()}
                _write(config_file, record | {"command": sys.argv})
        except OSError as error:
            raise _unwritable(path, error, of_directory) from error
        yield changes


def recorded_selection(path: Path) -> str:
    """Give the selector that the job in a directory was last reported by, or the default where there is none yet."""
    try:
        return str(json.loads((path / "config.json").read_text(encoding="utf-8")).get("selection", DEFAULT))
    except (OSError, ValueError, AttributeError):  # absent or damaged: resuming says so
        return DEFAULT


def record_selection(path: Path, selection: str) -> None:
    """Record the selector that the summary of a job, whose directory this process holds, is about to be made by.

    Raises:
        UsageError: It cannot be written.
    """
    config_file = path / "config.json"
    recorded = json.loads(config_file.read_text(encoding="utf-8"))
    if recorded.get("selection", DEFAULT) == selection:
        return
    try:
        _write(config_file, recorded | {"selection": selection})
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(config_file: Path, record: Mapping[str, Any]) -> None:
    replace_file(config_file, (json.dumps(record, indent=2) + "\n").encode())


def _lock(path: Path, lock: ExitStack, option: str) -> None:
    """Keep other processes out until ``lock`` is closed, by a lock on the directory itself, which is never replaced."""
    if sys.platform == "win32":
        return
    held = os.open(path, os.O_RDONLY)
    lock.callback(os.close, held)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{option}: another process runs the job in {path}; wait for it, or stop it") from None


def _unwritable(path: Path, error: OSError, option: str = "--out") -> UsageError:
    return UsageError(f"{option}: cannot write to {path}: {error.strerror}; choose another directory")


def require_begun(path: Path | None) -> None:
    """Check that there is a directory to resume.

    Raises:
        UsageError: None is given, or it is absent.
    """
    if path is None or not path.exists():
        found = "got none" if path is None else f"there is no {path}"
        raise UsageError(f"--resume: expected --out with the directory of the job to continue, {found}")


def require_unused(path: Path) -> None:
    """Insist that a new job's directory is absent or empty.

    Raises:
        UsageError: It holds something, is no directory, or cannot be looked at.
    """
    try:
        used = _is_used(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    if used:
        raise UsageError(
            f"--out: {path} is already used; choose another directory, or add --resume to continue the job in it"
        )


def _is_used(path: Path) -> bool:
    if not path.exists():
        return False
    # A kill while config.json was written leaves its hidden draft at most.
    return not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())


def _check_same(config_file: Path, description: Mapping[str, Any], option: str) -> list[str]:
    """Compare with the recorded description; return how the environment has changed."""
    try:
        recorded = {"variants": []} | json.loads(config_file.read_text(encoding="utf-8"))
        before, now = _flat({key: recorded[key] for key in description}), _flat(dict(description))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{option}: {config_file} is damaged ({type(error).__name__}: {error}); restore it from a copy, or begin "
            "anew in another directory"
        ) from error
    different = [line for line in _differences(before, now) if not line.startswith(FREE_SETTINGS)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise UsageError(
            f"{option}: {config_file.parent} was made with another configuration; give the same options, or begin anew "
            f"in another directory. What differs:{lines}"
        )
    began, here = recorded.get("environment", {}), describe_environment()
    ours = ("versions", "python", "torch_threads", "git_revision", "gpu")
    return _differences(_flat({key: began.get(key) for key in ours}), _flat({key: here[key] for key in ours}))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return result
