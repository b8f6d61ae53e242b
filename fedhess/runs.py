"""The directory of one run on disk: rounds.jsonl, the truth that every table is made from, and the checkpoint."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedhess.checkpoint import Checkpoint
from fedhess.errors import UsageError

Row = dict[str, Any]


class StorageError(Exception):
    """Results could not be written: the disk is full or the permissions are gone. No mistake in the command."""


class RunDirectory:
    """One run's directory, ``runs/NAME/TARGET/SEED``, below a directory for the strategy if a job has several.

    A checkpoint is a safetensors file and a small ``checkpoint.json`` that names it together with the length of
    rounds.jsonl at that moment. The JSON file is replaced atomically and last, so that whatever instant the process is
    killed at, file, checkpoint and rows agree after :meth:`load_checkpoint`: later rows are cut off and made again.

    Args:
        path: The directory; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds_file = path / "rounds.jsonl"
        self._checkpoint_dir = path / "checkpoint"
        self._index = self._checkpoint_dir / "checkpoint.json"

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows to rounds.jsonl; a number that is not finite becomes null, which is what JSON has for it.

        Raises:
            StorageError: They cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.rounds_file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)

    def rows(self) -> list[Row]:
        """Read every row; none if the run has not begun. A line cut short by a kill is left out.

        Raises:
            UsageError: A line is no JSON.
        """
        if not self.rounds_file.exists():
            return []
        with self.rounds_file.open(encoding="utf-8") as stream, _reading(self.rounds_file):
            return [json.loads(line) for line in stream if line.endswith("\n")]

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop the one before it.

        Raises:
            StorageError: It cannot be written; the one before it is still there.
        """
        with writing(self.path):
            self._checkpoint_dir.mkdir(parents=True, exist_ok=True)
            name = f"round-{checkpoint.server_round:06d}.safetensors"
            tensors = {key: value.detach().contiguous() for key, value in checkpoint.tensors.items()}
            replace_file(self._checkpoint_dir / name, save(tensors, metadata={"fedhess": checkpoint.header()}))
            length = self.rounds_file.stat().st_size if self.rounds_file.exists() else 0
            index = {"round": checkpoint.server_round, "file": name, "rounds_jsonl_bytes": length}
            replace_file(self._index, (json.dumps(index) + "\n").encode())
            self.tidy()

    def tidy(self) -> None:
        """Drop what belongs to no completed round: the checkpoint before the last, and what a kill left half written.

        Raises:
            StorageError: A file cannot be deleted.
        """
        if not self._index.exists():
            return
        kept = (self._read_index()["file"], self._index.name)
        with writing(self.path):
            for other in self._checkpoint_dir.iterdir():
                if other.name not in kept:
                    other.unlink()

    def completed_round(self) -> int | None:
        """Return the number of the last completed round, or None."""
        return int(self._read_index()["round"]) if self._index.exists() else None

    def load_checkpoint(self) -> Checkpoint | None:
        """Read the last checkpoint and cut rounds.jsonl back to it; without a checkpoint, begin from nothing.

        Raises:
            UsageError: A file is damaged.
        """
        if not self._index.exists():
            self.rounds_file.unlink(missing_ok=True)
            return None
        index = self._read_index()
        file = self._checkpoint_dir / str(index["file"])
        with _reading(file), safe_open(file, framework="pt") as stored:
            header = json.loads(stored.metadata()["fedhess"])
            tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 - no mapping
            checkpoint = Checkpoint(int(header["round"]), tensors, header["plain"])
        length = int(index["rounds_jsonl_bytes"])
        with _reading(self.rounds_file):
            size = self.rounds_file.stat().st_size
            if size < length:
                raise ValueError(f"it is shorter than the {length} bytes that the checkpoint counted")
            if size > length:
                os.truncate(self.rounds_file, length)
        return checkpoint

    def _read_index(self) -> dict[str, Any]:
        with _reading(self._index):
            index: dict[str, Any] = json.loads(self._index.read_text(encoding="utf-8"))
            return {key: index[key] for key in ("round", "file", "rounds_jsonl_bytes")}


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is seen either whole or not at all, whenever the process is killed.

    The system writes it to the disk in its own time: to wait for that would cost 8 ms a file, as much as a round of a
    small model. So a power cut can take the last seconds, and with them a checkpoint that was written in them.

    Raises:
        OSError: It cannot be written; the one before it is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write below ``path`` into advice.

    Raises:
        StorageError: The block raised ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror or error}; free space or mend the permissions"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        run = path.parent.parent if path.parent.name == "checkpoint" else path.parent
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or delete {run} to make "
            "this run anew"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
