"""A real federation whose parts tests may start, kill and start again."""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedhess.deploy import programs
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.processes import Processes, free_port, processes

REPOSITORY = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
SOURCES = ("art_painting", "cartoon", "photo")
DOMAINS = {**dict.fromkeys(SOURCES, "source"), "sketch": "target"}
# A round of ERM is the least work: one exchange and, at the end, one evaluation.
SETTINGS = 'threads=1 device="cpu" local-steps=2 evaluate-every=100 strategy="erm"'


class Federation:
    """SuperLink, SuperNodes and runs, each a process with a log.

    Args:
        folder: Where keys, logs and Flower's files go.
        running: Keeps the processes.
    """

    def __init__(self, folder: Path, running: Processes) -> None:
        self.folder = folder
        self.running = running
        self.keys = Keys(folder / "keys")
        self.home = folder / "flower"
        self.port = free_port()
        self.app = make_app(folder / "fedhess")
        make_keys(self.keys, hosts=[HOST], nodes=list(DOMAINS), days=1)
        programs.write_connection(self.home, address=f"{HOST}:{self.port}", ca=self.keys.ca)

    def start_superlink(self, name: str = "superlink", **variables: str) -> None:
        """Start the SuperLink and wait until it answers."""
        database, variables = self.folder / "superlink.db", {"FLWR_HOME": str(self.home), **variables}
        link = programs.superlink(self.keys, host=HOST, port=self.port, database=database, **variables)
        self.running.start(name, link)
        self.await_superlink()

    def await_superlink(self) -> None:
        """Wait until the SuperLink answers at its own port."""
        context = ssl.create_default_context(cafile=str(self.keys.ca))
        self.wait(lambda: _answers(f"https://{HOST}:{self.port}/health", context), "the SuperLink answers", 90)

    def register(self, names: Sequence[str] = tuple(DOMAINS)) -> None:
        """Register nodes with the SuperLink."""
        for name in names:
            self.running.start(f"register-{name}", programs.register(self.keys.public(name), flower_home=self.home))
        self.wait(lambda: all(f"register-{n}" in self.running.ended() for n in names), "the nodes are registered", 90)
        assert {self.running.ended()[f"register-{n}"] for n in names} == {0}

    def start_node(
        self,
        domain: str,
        *,
        key: str = "",
        log: str = "",
        keys: Keys | None = None,
        script: Path | None = None,
        port: int | None = None,
        **node_config: Any,
    ) -> None:
        """Start the SuperNode of a domain; ``log`` tells this start from others, ``script`` is run in its place.

        Its ``key`` is that of the domain's name unless it has another's.
        """
        own = {"role": DOMAINS[domain], "domain": domain, **{k.replace("_", "-"): v for k, v in node_config.items()}}
        address, home = f"{HOST}:{port or self.port}", str(self.home)
        node = programs.supernode(
            keys or self.keys, address=address, name=key or domain, port=free_port(), node_config=own, FLWR_HOME=home
        )
        if script is not None:
            node = replace(node, name=sys.executable, arguments=[str(script), *node.arguments])
        self.running.start(log or domain, node)

    def start_nodes(self, *, port: int | None = None, **of_cartoon: Any) -> None:
        """Start the SuperNode of every domain."""
        for domain in DOMAINS:
            self.start_node(domain, port=port, **(of_cartoon if domain == "cartoon" else {}))

    def start_run(self, name: str, *settings: str) -> "subprocess.Popen[bytes]":
        """Start a run, recorded in the folder of its name; its log is that of its name."""
        given = [SETTINGS, f'run-dir="{self.folder / name}"', *settings]
        return self.running.start(f"run-{name}", programs.run(self.app, flower_home=self.home, run_config=given))

    def simulate(self, name: str, *, rounds: int) -> None:
        """Let the run that the default settings describe go in one process, recorded in the folder of its name."""
        command = ["-m", "fedhess.simulate", "--domains", "IconPACS", "--target", "sketch", "--strategy", "erm"]
        command += ["--rounds", str(rounds), "--trials", "1", "--local-steps", "2", "--evaluate-every", "100"]
        command += ["--threads", "1", "--device", "cpu", "--out", str(self.folder / name)]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    def finish(self, name: str, seconds: float) -> str:
        """Wait for a run to end, and return its log."""
        self.wait(lambda: f"run-{name}" in self.running.ended(), f"run {name} ends", seconds)
        return self.log(f"run-{name}")

    def kill(self, name: str) -> None:
        """Kill a process and its session at once, as a power cut would."""
        os.killpg(self.running.running[name].pid, signal.SIGKILL)
        self.running.running[name].wait()

    def await_log(self, name: str, pattern: str, seconds: float, *, times: int = 1) -> None:
        """Wait until a pattern stands in a log so many times."""
        self.wait(lambda: len(re.findall(pattern, self.log(name))) >= times, f"{pattern} in the log of {name}", seconds)

    def log(self, name: str) -> str:
        """Return a log."""
        file = self.running.log(name)
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def rows(self, name: str, *, target: str = "sketch") -> list[dict[str, Any]]:
        """Return the rows that a run recorded."""
        file = self.folder / name / target / "0" / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def failures(self, name: str) -> list[tuple[int, str, str, str]]:
        """Return round, domain, phase and reason of each failure that a run recorded."""
        return [
            (f["round"], row["domain"], f["phase"], f["reason"]) for row in self.rows(name) for f in row["failures"]
        ]

    def completed_round(self, name: str) -> int:
        """Return the number of the last round in a run's checkpoint."""
        file = self.folder / name / "sketch" / "0" / "checkpoint" / "checkpoint.json"
        return int(json.loads(file.read_text(encoding="utf-8"))["round"]) if file.exists() else -1

    def weights(self, name: str) -> bytes:
        """Return the bytes of a run's final checkpoint."""
        return max((self.folder / name).rglob("checkpoint/*.safetensors")).read_bytes()

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until a condition holds, or fail with the end of every log."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = sorted(file.stem for file in self.running.log("x").parent.glob("*.log"))
                ends = "".join(f"\n-- {name}{self.running.tail(name)}" for name in logs)
                pytest.fail(f"not within {seconds:g} s: {what}{ends}")
            time.sleep(0.2)


def make_app(folder: Path) -> Path:
    """Make a Flower app of the project's code whose clients can be told to misbehave, and whose server be misled."""
    for package in ("fedhess", "strategies"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for module in ("misbehaving.py", "misled.py"):
        shutil.copy(Path(__file__).parent / module, folder)
    for file in ("README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, folder)
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    text = text.replace('clientapp = "fedhess.federation.client.app:app"', 'clientapp = "misbehaving:app"')
    text = text.replace('serverapp = "fedhess.deploy.app:app"', 'serverapp = "misled:app"')
    text = text.replace("fab-include = [", 'fab-include = ["misbehaving.py", "misled.py", ')
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        return httpx.get(url, verify=context, timeout=5).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    """A federation of which nothing runs yet; whatever runs at the end is ended."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "support" / "impatient"))
    with processes(tmp_path / "logs") as running:
        yield Federation(tmp_path, running)


@pytest.fixture
def started(federation: Federation) -> Federation:
    """A federation whose SuperLink runs and knows every node; no node runs yet."""
    federation.start_superlink()
    federation.register()
    return federation
