"""The directory of one run on disk: rounds.jsonl, the truth that every table is made from, and the checkpoint."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from fedhess.checkpoint import Checkpoint
from fedhess.errors import UsageError

Row = dict[str, Any]


class RunDirectory:
    """One run's directory, ``runs/NAME/STRATEGY/TARGET/SEED``.

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
        """Append rows to rounds.jsonl."""
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.rounds_file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, allow_nan=True) + "\n" for row in rows)

    def rows(self) -> list[Row]:
        """Read every row; none if the run has not begun."""
        if not self.rounds_file.exists():
            return []
        with self.rounds_file.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.endswith("\n")]

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop the one before it."""
        with _writing(self.path):
            self._checkpoint_dir.mkdir(parents=True, exist_ok=True)
            name = f"round-{checkpoint.server_round:06d}.safetensors"
            tensors = {key: value.detach().contiguous() for key, value in checkpoint.tensors.items()}
            _replace(self._checkpoint_dir / name, save(tensors, metadata={"fedhess": checkpoint.header()}))
            length = self.rounds_file.stat().st_size if self.rounds_file.exists() else 0
            index = {"round": checkpoint.server_round, "file": name, "rounds_jsonl_bytes": length}
            _replace(self._index, (json.dumps(index) + "\n").encode())
            for other in self._checkpoint_dir.glob("round-*.safetensors"):
                if other.name != name:
                    other.unlink()

    def completed_round(self) -> int | None:
        """Return the number of the last completed round, or None."""
        if not self._index.exists():
            return None
        return int(json.loads(self._index.read_text(encoding="utf-8"))["round"])

    def load_checkpoint(self) -> Checkpoint | None:
        """Read the last checkpoint and cut rounds.jsonl back to it; without a checkpoint, begin from nothing."""
        if not self._index.exists():
            self.rounds_file.unlink(missing_ok=True)
            return None
        index = json.loads(self._index.read_text(encoding="utf-8"))
        with safe_open(self._checkpoint_dir / index["file"], framework="pt") as stored:
            header = json.loads(stored.metadata()["fedhess"])
            tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 - no mapping
        if self.rounds_file.exists():
            os.truncate(self.rounds_file, index["rounds_jsonl_bytes"])
        return Checkpoint(int(header["round"]), tensors, header["scalars"])


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is seen either whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}: {error.strerror or error}; the last completed round is kept: free space or mend "
            "the permissions, then run the same command with --resume"
        ) from None
