"""The directory of one run on disk: rounds.jsonl, which every table is made from, and the checkpoint."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedhess.base.errors import StorageError, UsageError
from fedhess.base.files import append, digest_of, replace_file, writing
from fedhess.federation.protocol import client_label
from fedhess.federation.server.checkpoint import Checkpoint

Row = dict[str, Any]

# Keys of every row.
ROW = ["round", "domain", "role", "split", "examples", "loss", "accuracy"]
ROW += ["gradient_distance", "hgp_distance", "failures"]

TRAINED = "trained"  # key, in a checkpoint, of the training metrics of a round that is yet to be evaluated


class RunDirectory:
    """One run's directory, ``runs/NAME/TARGET/SEED``, below a directory for the strategy if a job has several.

    A checkpoint is a safetensors file and a small ``checkpoint.json`` with the file's name and sha256, the length of
    rounds.jsonl at that time and the values that no row has yet. The JSON file is replaced atomically and last. So
    whenever the process is killed, file, checkpoint and rows agree after :meth:`rewind`, which cuts off later rows for
    the run to make again. Failed I/O raises ``StorageError``, a damaged or missing file ``UsageError``.

    Up to three checkpoints are kept for :meth:`go_back`: the last two and that of the selected round.

    ``selected/`` holds the model of the selected round so far, in a file named by the round, and the models that were
    selected at the kept checkpoints, since the run may go back to any of them.
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
        """Append rows to rounds.jsonl; a number that is not finite becomes null, since JSON cannot express it."""
        self.log(self.rounds_file.name, "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows))

    def log(self, name: str, text: str) -> Path:
        """Append to a file of the directory, and return its path."""
        file = self.path / name
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            append(file, text)
        return file

    def record_clients(self, clients: Sequence[Mapping[str, Any]]) -> None:
        """Write the clients' identities and their nodes to clients.json."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self._clients_file, (json.dumps(clients, indent=2) + "\n").encode())

    def clients(self) -> dict[str, dict[str, Any]]:
        """Return the last recorded clients by name; none before the run has begun."""
        if not self._clients_file.exists():
            return {}
        with _reading(self._clients_file):
            found: list[dict[str, Any]] = json.loads(self._clients_file.read_text(encoding="utf-8"))
            return {client_label(each["domain"], each["client"]): each for each in found}

    def nodes(self) -> dict[str, int]:
        """Return which node each client was, by the client's name."""
        return {name: int(client["node"]) for name, client in self.clients().items()}

    def record_failure(self, reason: str) -> None:
        """Record why the run stopped, until it begins again."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self._failure_file, (reason + "\n").encode())

    def failure(self) -> str | None:
        """Return why the run stopped; None if it has ended, was interrupted, is running or has not begun."""
        return self._failure_file.read_text(encoding="utf-8").strip() if self._failure_file.exists() else None

    def rows(self) -> list[Row]:
        """Read every row; none if the run has not begun. A line cut short by a kill is left out."""
        self._require_rows()
        if not self.rounds_file.exists():
            return []
        with _reading(self.rounds_file), self.rounds_file.open(encoding="utf-8") as stream:
            return [_row(line, number) for number, line in enumerate(stream, start=1) if line.endswith("\n")]

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; of the earlier ones the last and that of the selected round are kept."""
        with writing(self.path):
            self._checkpoint_dir.mkdir(parents=True, exist_ok=True)
            number, selected = checkpoint.server_round, self.selected_round()
            earlier = [entry for entry in self._checkpoints() if entry["round"] < number]
            kept = [entry for entry in earlier if entry is earlier[-1] or entry["round"] == selected]
            sha256 = _save(self._checkpoint_dir / _file_name(number), checkpoint.tensors, checkpoint.header())
            entry = {"round": number, "file": _file_name(number), "sha256": sha256}
            self._write_index([*kept, entry | self._position(checkpoint.unreported)])
            self.tidy()

    def settle(self) -> None:
        """Record that the rows of the last checkpoint's round are complete; otherwise it is evaluated again."""
        *earlier, last = self._checkpoints()
        with writing(self.path):
            self._write_index([*earlier, last | self._position({})])
            self._tidy_selected()

    def save_selected(self, server_round: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the model of the selected round so far; it replaces those selected since the last checkpoint."""
        with writing(self.path):
            self._selected_dir.mkdir(parents=True, exist_ok=True)
            _save(self._selected_dir / _file_name(server_round), tensors, json.dumps({"round": server_round}))
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
        with _reading(file):
            return _load(file)[0]

    def sync(self) -> None:
        """Wait until the rows and the last checkpoint are on the disk, where a power cut cannot lose them."""
        checkpoint = self._checkpoint_dir / str(self._checkpoints()[-1]["file"])
        files = self._selected_files()
        selected = [files[max(files)], self._selected_dir] if files else []
        with writing(self.path):
            for path in (self.rounds_file, checkpoint, self._index, self._checkpoint_dir, *selected, self.path):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def tidy(self) -> None:
        """Delete what belongs to no completed round: a failure, checkpoints that are not kept, half-written files."""
        with writing(self.path):
            self._failure_file.unlink(missing_ok=True)
        if not self._index.exists():
            return
        kept = {*(entry["file"] for entry in self._checkpoints()), self._index.name}
        with writing(self.path):
            for other in self._checkpoint_dir.iterdir():
                if other.name not in kept:
                    other.unlink()
            self._tidy_selected()

    def _tidy_selected(self) -> None:
        """Delete all models in ``selected/`` but those of the checkpoints that are kept."""
        completed = self.completed_round()
        known = [number for number in self._selected_files() if completed is not None and number <= completed]
        kept = {entry.get("selected") for entry in self._checkpoints()} | {max(known, default=None)}
        names = {_file_name(number) for number in kept if number is not None}
        for other in self._selected_dir.glob("*"):
            if other.name not in names:
                other.unlink()

    def _selected_files(self) -> dict[int, Path]:
        return {int(path.stem.partition("-")[2]): path for path in self._selected_dir.glob("round-*.safetensors")}

    def completed_round(self) -> int | None:
        """Return the number of the last round that is trained and, if it is to be, evaluated; or None."""
        if not self._index.exists():
            return None
        self._require_rows()
        last = self._checkpoints()[-1]
        completed = int(last["round"]) - (TRAINED in last["unreported"])
        return completed if completed >= 0 else None

    def kept_rounds(self) -> list[int]:
        """Return the rounds whose checkpoints are kept."""
        return [int(entry["round"]) for entry in self._checkpoints()]

    def load_checkpoint(self) -> Checkpoint | None:
        """Read the last checkpoint, or return None where there is none."""
        if not self._index.exists():
            return None
        last = self._checkpoints()[-1]
        file = self._checkpoint_dir / str(last["file"])
        with _reading(file):
            tensors, header = _load(file, sha256=last.get("sha256", "none"))
            described = json.loads(header)
            return Checkpoint(int(described["round"]), tensors, described["plain"], last["unreported"])

    def rewind(self) -> None:
        """Cut rounds.jsonl back to the last checkpoint, or delete it if there is none; the run continues from there."""
        self._require_rows()
        checkpoints = self._checkpoints()
        length = int(checkpoints[-1]["rounds_jsonl_bytes"]) if checkpoints else 0
        with writing(self.path):
            if length:
                os.truncate(self.rounds_file, length)
            else:
                self.rounds_file.unlink(missing_ok=True)
            self._tidy_selected()

    def go_back(self, server_round: int) -> None:
        """Return to the checkpoint of a round, one of `kept_rounds`: later ones and later rows are dropped."""
        with writing(self.path):
            self._write_index([entry for entry in self._checkpoints() if entry["round"] <= server_round])
        self.rewind()
        self.tidy()

    def _require_rows(self) -> None:
        """Check that rounds.jsonl has all the rows that the last checkpoint counted."""
        for last in self._checkpoints()[-1:]:
            with _reading(self.rounds_file):
                if self._rows_length() < int(last["rounds_jsonl_bytes"]):
                    raise ValueError(f"it is shorter than the {last['rounds_jsonl_bytes']} bytes of its checkpoint")

    def _rows_length(self) -> int:
        return self.rounds_file.stat().st_size if self.rounds_file.exists() else 0

    def _position(self, unreported: Mapping[str, Any]) -> dict[str, Any]:
        """Return, for checkpoint.json, the position of rows and selected model, with what no row has yet."""
        return {
            "rounds_jsonl_bytes": self._rows_length(),
            "selected": self.selected_round(),
            "unreported": dict(unreported),
        }

    def _write_index(self, checkpoints: Sequence[Mapping[str, Any]]) -> None:
        index = {**checkpoints[-1], "earlier": checkpoints[:-1]}
        replace_file(self._index, (json.dumps(index) + "\n").encode())

    def _checkpoints(self) -> list[dict[str, Any]]:
        """Return the entry of each kept checkpoint in checkpoint.json, the last one last."""
        if not self._index.exists():
            return []
        with _reading(self._index):
            index: dict[str, Any] = json.loads(self._index.read_text(encoding="utf-8"))
            checkpoints = [*index.pop("earlier", []), index]
            for entry, key in itertools.product(checkpoints, ("round", "file", "rounds_jsonl_bytes")):
                entry[key]
            return [entry | {"unreported": dict(entry.get("unreported", {}))} for entry in checkpoints]


def _save(file: Path, tensors: Mapping[str, Tensor], header: str) -> str:
    """Write tensors with a header; return the sha256 of both, which the file has as well."""
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    sha256 = _sha256(contiguous, header)
    replace_file(file, save(contiguous, metadata={"fedhess": f"{sha256} {header}"}))  # two keys come in random order
    return sha256


def _load(file: Path, sha256: str = "") -> tuple[dict[str, Tensor], str]:
    """Read what `_save` wrote; ValueError if its sha256 does not match, UsageError if it has none."""
    with file.open("rb"), safe_open(file, framework="pt") as stored:
        recorded, _, header = stored.metadata()["fedhess"].partition(" ")
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - no mapping
    if recorded.startswith("{"):
        raise UsageError(
            f"{file} was written by an earlier version, without a sha256; continue or read the run with the version "
            "that wrote it, or begin another run"
        )
    if not _sha256(tensors, header) == recorded == (sha256 or recorded):
        raise ValueError("its sha256 is not the one that was recorded")
    return tensors, header


def _sha256(tensors: Mapping[str, Tensor], header: str) -> str:
    parts: list[str | memoryview] = [header]
    for name in sorted(tensors):
        parts += [name, tensors[name].reshape(-1).view(torch.uint8).numpy().data]
    return digest_of(parts)


def _file_name(server_round: int) -> str:
    return f"round-{server_round:06d}.safetensors"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    run = path.parent.parent if path.parent.name in ("checkpoint", "selected") else path.parent
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or delete {run} to make "
            "this run again"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}; check the disk and the permissions"
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
