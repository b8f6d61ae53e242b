"""A hub on this machine: it describes one data set and sends its files."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets

REPOSITORY = "owner/name"


@dataclass
class Hub:
    """What the hub has, what it does, and what it was asked for."""

    files: dict[str, bytes]
    revision: str = "a" * 40
    address: str = ""
    cut_after: int | None = None  # bytes of every file, then the connection ends
    wrong_checksum: bool = False
    asked: list[str] = field(default_factory=list)  # files


def parquet(path: Path, rows: list[tuple[bytes, str, str]], classes: list[str], domains: list[str] | None) -> bytes:
    """Write rows of (image, domain, class) as the hub's data sets have them; returns the file's content.

    With ``domains`` the domain is a class label, as in DomainNet's copy; without, it is text, as in the others.
    """
    features = datasets.Features(
        image=datasets.Image(),
        domain=datasets.ClassLabel(names=domains) if domains else datasets.Value("string"),
        label=datasets.ClassLabel(names=classes),
    )
    columns = {
        "image": [{"bytes": image, "path": None} for image, _, _ in rows],
        "domain": [domain for _, domain, _ in rows],
        "label": [label for _, _, label in rows],
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path.read_bytes()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == f"/api/datasets/{REPOSITORY}":
                self._send(json.dumps(_description(hub)).encode(), kind="application/json")
                return
            prefix = f"/datasets/{REPOSITORY}/resolve/{hub.revision}/"
            name = path.removeprefix(prefix)
            if not path.startswith(prefix) or name not in hub.files:
                self.send_error(404)
                return
            if self.command == "GET":
                hub.asked.append(name)
            self._send(hub.files[name], kind="application/octet-stream")

        do_HEAD = do_GET

        def _send(self, content: bytes, *, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            self.send_header("X-Repo-Commit", hub.revision)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content if kind == "application/json" else content[: hub.cut_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        hub.address = f"http://127.0.0.1:{running.server_address[1]}"
        yield hub
        running.shutdown()


def _description(hub: Hub) -> dict[str, object]:
    siblings: list[dict[str, object]] = [{"rfilename": "README.md", "size": 3}]
    for name, content in hub.files.items():
        sha256 = hashlib.sha256(content[1:] if hub.wrong_checksum else content).hexdigest()
        lfs = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        siblings.append({"rfilename": name, "size": len(content), "lfs": lfs})
    return {"id": REPOSITORY, "sha": hub.revision, "siblings": siblings}
