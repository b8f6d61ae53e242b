"""The directory of one run on disk: rounds.jsonl, the truth that every table is made from, and the checkpoint."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing
from fedhess.federation.server.checkpoint import Checkpoint

Row = dict[str, Any]

# What every row has.
ROW = ["round", "domain", "role", "split", "examples", "loss", "accuracy"]
ROW += ["gradient_distance", "hgp_distance", "failures"]

TRAINED = "trained"  # key of what no row has yet: the training metrics of a round that is yet to be evaluated


class RunDirectory:
    """One run's directory, ``runs/NAME/TARGET/SEED``, below a directory for the strategy if a job has several.

    A checkpoint is a safetensors file and a small ``checkpoint.json`` that names it together with the length of
    rounds.jsonl at that moment and what no row has yet. The JSON file is replaced atomically and last, so that whatever
    instant the process is killed at, file, checkpoint and rows agree after :meth:`rewind`: later rows are cut off and
    made again. What cannot be written raises ``StorageError``, what cannot be read ``UsageError``.

    ``selected/`` holds the model of the selected round so far, in a file named by the round. One that is written
    replaces the one before only once the checkpoint has come to it: the run may go back to the checkpoint.

    Args:
        path: The directory; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds_file = path / "rounds.jsonl"
        self._failure_file = path / "failure.txt"
        self._clients_file = path / "clients.json"
        self._checkpoint_dir = path / "checkpoint"
        self._index = self._checkpoint_dir / "checkpoint.json"
        self._selected_dir = path / "selected"

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows to rounds.jsonl; a number that is not finite becomes null, which is what JSON has for it."""
        self.log(self.rounds_file.name, "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows))

    def log(self, name: str, text: str) -> Path:
        """Append to a file of the directory, and return its path."""
        file = self.path / name
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)
        return file

    def record_clients(self, clients: Sequence[Mapping[str, Any]]) -> None:
        """Keep who the clients are, as they identified themselves: clients.json."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self._clients_file, (json.dumps(clients, indent=2) + "\n").encode())

    def clients(self) -> list[dict[str, Any]]:
        """Return what was last recorded of the clients; nothing before the run has begun."""
        if not self._clients_file.exists():
            return []
        with _reading(self._clients_file):
            found: list[dict[str, Any]] = json.loads(self._clients_file.read_text(encoding="utf-8"))
            return found

    def nodes(self) -> dict[str, int]:
        """Return which node each client was, by the client's name."""
        return {str(client["client"]): int(client["node"]) for client in self.clients()}

    def record_failure(self, reason: str) -> None:
        """Keep why the run stopped, until it begins again."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self._failure_file, (reason + "\n").encode())

    def failure(self) -> str | None:
        """Return why the run stopped, or None: it has ended, was interrupted, runs or has not begun."""
        return self._failure_file.read_text(encoding="utf-8").strip() if self._failure_file.exists() else None

    def rows(self) -> list[Row]:
        """Read every row; none if the run has not begun. A line cut short by a kill is left out."""
        if not self.rounds_file.exists():
            return []
        with _reading(self.rounds_file), self.rounds_file.open(encoding="utf-8") as stream:
            return [_row(line, number) for number, line in enumerate(stream, start=1) if line.endswith("\n")]

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and delete the one before it."""
        with writing(self.path):
            self._checkpoint_dir.mkdir(parents=True, exist_ok=True)
            name = _file_name(checkpoint.server_round)
            tensors = {key: value.detach().contiguous() for key, value in checkpoint.tensors.items()}
            replace_file(self._checkpoint_dir / name, save(tensors, metadata={"fedhess": checkpoint.header()}))
            self._write_index(checkpoint.server_round, name, checkpoint.unreported)
            self.tidy()

    def settle(self) -> None:
        """Record that the rows have all that the last checkpoint's round reports; else it is evaluated again."""
        index = self._read_index()
        with writing(self.path):
            self._write_index(index["round"], index["file"], {})
            self._tidy_selected()

    def save_selected(self, server_round: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the model of a round that is the selected one so far, in place of others since the checkpoint."""
        with writing(self.path):
            self._selected_dir.mkdir(parents=True, exist_ok=True)
            metadata = {"fedhess": json.dumps({"round": server_round})}
            contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
            replace_file(self._selected_dir / _file_name(server_round), save(contiguous, metadata=metadata))
            completed = self.completed_round()
            for other in self._selected_files():
                if completed is not None and completed < other < server_round:
                    self._selected_files()[other].unlink()

    def selected_round(self) -> int | None:
        """Return the round of the model in ``selected/``, or None where there is none."""
        return max(self._selected_files(), default=None)

    def load_selected(self) -> dict[str, Tensor]:
        """Read the model in ``selected/``: its tensors by name."""
        file = self._selected_files()[max(self._selected_files())]
        with _reading(file), safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - no mapping

    def sync(self) -> None:
        """Wait until the rows and the last checkpoint are on the disk, which a power cut could take before."""
        checkpoint = self._checkpoint_dir / str(self._read_index()["file"])
        selected = [*self._selected_files().values(), self._selected_dir] if self._selected_dir.exists() else []
        with writing(self.path):
            for path in (self.rounds_file, checkpoint, self._index, self._checkpoint_dir, *selected, self.path):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def tidy(self) -> None:
        """Delete what belongs to no completed round: a failure, the checkpoint before the last, files half written."""
        with writing(self.path):
            self._failure_file.unlink(missing_ok=True)
        if not self._index.exists():
            return
        kept = (self._read_index()["file"], self._index.name)
        with writing(self.path):
            for other in self._checkpoint_dir.iterdir():
                if other.name not in kept:
                    other.unlink()
            self._tidy_selected()

    def _tidy_selected(self) -> None:
        """Delete all models in ``selected/`` but the newest that the last checkpoint's rows have."""
        completed = self.completed_round()
        known = [number for number in self._selected_files() if completed is not None and number <= completed]
        kept = _file_name(max(known)) if known else ""
        for other in self._selected_dir.glob("*"):
            if other.name != kept:
                other.unlink()

    def _selected_files(self) -> dict[int, Path]:
        return {int(path.stem.partition("-")[2]): path for path in self._selected_dir.glob("round-*.safetensors")}

    def completed_round(self) -> int | None:
        """Return the number of the last round that is trained and, where it is its turn, evaluated; or None."""
        if not self._index.exists():
            return None
        index = self._read_index()
        completed = int(index["round"]) - (TRAINED in index["unreported"])
        return completed if completed >= 0 else None

    def load_checkpoint(self) -> Checkpoint | None:
        """Read the last checkpoint, or return None where there is none."""
        if not self._index.exists():
            return None
        index = self._read_index()
        file = self._checkpoint_dir / str(index["file"])
        with _reading(file), safe_open(file, framework="pt") as stored:
            header = json.loads(stored.metadata()["fedhess"])
            tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 - no mapping
            return Checkpoint(int(header["round"]), tensors, header["plain"], index["unreported"])

    def rewind(self) -> None:
        """Cut rounds.jsonl back to the last checkpoint, or delete it where there is none: the run continues there."""
        length = int(self._read_index()["rounds_jsonl_bytes"]) if self._index.exists() else 0
        with _reading(self.rounds_file):
            if self._rows_length() < length:
                raise ValueError(f"it is shorter than the {length} bytes that the checkpoint counted")
        with writing(self.path):
            if length:
                os.truncate(self.rounds_file, length)
            else:
                self.rounds_file.unlink(missing_ok=True)
            self._tidy_selected()

    def _rows_length(self) -> int:
        return self.rounds_file.stat().st_size if self.rounds_file.exists() else 0

    def _write_index(self, server_round: int, file: str, unreported: Mapping[str, Any]) -> None:
        index = {"round": server_round, "file": file, "rounds_jsonl_bytes": self._rows_length()}
        replace_file(self._index, (json.dumps(index | {"unreported": dict(unreported)}) + "\n").encode())

    def _read_index(self) -> dict[str, Any]:
        with _reading(self._index):
            index: dict[str, Any] = json.loads(self._index.read_text(encoding="utf-8"))
            needed = {key: index[key] for key in ("round", "file", "rounds_jsonl_bytes")}
            return needed | {"unreported": dict(index.get("unreported", {}))}


def _file_name(server_round: int) -> str:
    return f"round-{server_round:06d}.safetensors"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        run = path.parent.parent if path.parent.name in ("checkpoint", "selected") else path.parent
        raise UsageError(
            f"{path} is damaged or cannot be read ({type(error).__name__}: {error}); restore it from a copy, or delete "
            f"{run} to make this run anew"
        ) from error


def _row(line: str, number: int) -> Row:
    row = json.loads(line)
    missing = [key for key in ROW if key not in row]
    if missing:
        raise ValueError(f"line {number}: expected a row of {', '.join(ROW)}; missing: {', '.join(missing)}")
    return dict(row)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
