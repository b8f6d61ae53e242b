"""The directory of a job: created once, resumed only with the same configuration, used by one process at a time."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing
from fedhess.domains.domain import Notify
from fedhess.jobs.job import own_code, with_defaults
from fedhess.jobs.selectors import DEFAULT

# A resumed job may change these: they decide how long to wait and what to keep, and do not affect results.
FREE_SETTINGS = tuple(
    f"settings.{name}"
    for name in ("deadline", "exchange_deadline", "checkpoint_every", "images", "image_cache_gb", "weights:")
)
ENVIRONMENT = ("versions", "python", "torch_threads", "git_revision", "gpu", "own_code")  # may change result bits


@contextmanager
def job_directory(
    path: Path,
    record: Mapping[str, Any],
    *,
    resume: bool,
    selection: str = DEFAULT,
    options: tuple[str, str] = ("--out", "--resume"),
    lock: FileLock | None = None,
    command: Sequence[str] | None = None,
) -> Iterator[list[str]]:
    """Create a job's directory and config.json, or check those of the job to resume; keep other processes out.

    A job that was killed before it wrote config.json is resumed from the beginning.

    Args:
        path: The directory.
        record: What determines the results, from :func:`fedhess.jobs.job.make_record`.
        resume: Whether the directory may hold an interrupted job.
        selection: How round and variant are selected, recorded when the job begins.
        options: Names of the directory option and of the resume option, for messages.
        lock: The lock from `hold`, if the job was planned from the directory's own record; released at the end.
        command: The command that began the job; by default this process's command line.

    Yields:
        The differences from the last recorded environment of the job; they may change bits of the results.

    Raises:
        UsageError: The directory is in use, cannot be written, or was made with another configuration.
    """
    config_file, changes = path / "config.json", list[str]()
    of_directory, of_resuming = options
    if not resume:
        require_unused(path)
    with ExitStack() as held:
        try:
            if resume and _is_used(path) and not config_file.exists():
                raise UsageError(
                    f"{of_resuming}: there is no {config_file}; give {of_directory} the directory of the job to "
                    "continue"
                )
            path.mkdir(parents=True, exist_ok=True)
            planned_from_it = lock is not None
            held.callback((lock or hold(path, of_directory)).release)
            if not resume:
                require_unused(path)  # another process may have been here since
            if _is_used(path):
                changes = _check_same(config_file, None if planned_from_it else record, of_resuming)
            else:
                described = {**record, "selection": selection, "environment": describe_environment(own_code(record))}
                _write_config(config_file, described | {"command": list(command or sys.argv)})
        except OSError as error:
            raise _unwritable(path, error, of_directory) from error
        yield changes


def is_held(path: Path) -> bool:
    """Whether a process runs the job in a directory."""
    if not (path / ".lock").exists():
        return False
    try:
        with FileLock(path / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def hold(path: Path, option: str = "--out", *, wait: Notify | None = None) -> FileLock:
    """Keep other processes out of a job's directory until the returned lock is released.

    Args:
        path: The directory.
        option: The option that messages name.
        wait: Called with a notice if another process runs the job, before waiting for that process to end.
    """
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if wait is None:
            raise UsageError(
                f"{option}: another process runs the job in {path}; wait for it, or stop it, and give this command "
                "again"
            ) from None
        wait(f"another process runs the job in {path}; waiting for its end to go on from there (Ctrl-C gives up)")
        lock.acquire(timeout=-1)
    except OSError as error:
        raise _unwritable(path, error, option) from error
    return lock


def amend_config(path: Path, changes: Mapping[str, Any]) -> None:
    """Update entries of a job's config.json if any of them differs; this process must hold the directory."""
    file = path / "config.json"
    recorded = {"selection": DEFAULT, "trackers": []} | json.loads(file.read_text(encoding="utf-8"))
    if recorded | changes != recorded:
        with writing(path):
            _write_config(file, recorded | changes)


def _write_config(config_file: Path, record: Mapping[str, Any]) -> None:
    replace_file(config_file, (json.dumps(record, indent=2) + "\n").encode())


def _unwritable(path: Path, error: OSError, option: str = "--out") -> UsageError:
    return UsageError(f"{option}: cannot write to {path}: {error.strerror}; choose another directory")


def require_begun(path: Path | None, option: str) -> Path:
    """Return the directory of the job to resume or to add to."""
    what = "continue" if option == "--resume" else "add to"
    if path is None or not path.exists():
        found = "got none" if path is None else f"there is no {path}"
        raise UsageError(f"{option}: expected --out with the directory of the job to {what}, {found}")
    file = path / "config.json"
    if not file.exists() and (option == "--add" or _is_used(path)):  # else killed before it wrote one
        raise UsageError(f"{option}: there is no {file}; give --out the directory of the job to {what}")
    return path


def require_unused(path: Path, *, grows: bool = True) -> None:
    """Check that a new job's directory is absent or empty; ``grows`` if the command can continue or extend a job."""
    try:
        used = _is_used(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    if used:
        more = ", or add --resume to continue the job in it, or --add to let it grow" if grows else ""
        raise UsageError(f"--out: {path} is already used; choose another directory{more}")


def _is_used(path: Path) -> bool:
    if not path.exists():
        return False
    # A job killed while writing config.json leaves at most a hidden draft of it.
    return not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())


def _check_same(config_file: Path, record: Mapping[str, Any] | None, option: str) -> list[str]:
    """Compare ``record``, if there is one, with the recorded job; return how the environment has changed."""
    try:
        before = with_defaults(json.loads(config_file.read_text(encoding="utf-8")))
        record = before if record is None else with_defaults(record)
        there = {key: before[key] for key in record}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{option}: {config_file} is damaged ({type(error).__name__}: {error}); restore it from a copy, or begin "
            "anew in another directory"
        ) from error
    refuse_differences(config_file.parent, there, record, option)
    last, here = [before, *before.get("additions", [])][-1], describe_environment(own_code(record))
    began = last.get("environment", {})
    began = {"own_code": {}, **began}  # earlier versions did not record own_code
    return describe_differences({key: began.get(key) for key in ENVIRONMENT}, {key: here[key] for key in ENVIRONMENT})


def refuse_differences(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], option: str) -> None:
    """Check that two descriptions agree in everything that affects results."""
    different = describe_differences(before, now)
    if lines := [f"\n  {line}" for line in different if not line.startswith(FREE_SETTINGS)]:
        advice = "leave out what differs" if option == "--add" else "give the same options"
        raise UsageError(
            f"{option}: {path} was made with another configuration; {advice}, or begin anew in another directory. What "
            f"differs:{''.join(lines)}"
        )


def describe_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, words: tuple[str, str] = ("there", "now")
) -> list[str]:
    """List each key, nested keys included, in which two descriptions differ, with both values."""
    there, here = _flat(dict(before)), _flat(dict(now))
    return [
        f"{key}: {there.get(key)!r} {words[0]}, {here.get(key)!r} {words[1]}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return result
