"""Shared by all tests: a cache of their own, the toy benchmark, the command in this process or in one of its own."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhess import data, simulate
from fedhess.cli.command import run_command
from fedhess.domains import BENCHMARKS
from fedhess.domains.images import release
from fedhess.federation.client import memory
from fedhess.results import figures

SUPPORT = Path(__file__).parent / "support"
# The command with the toy benchmark added to its table.
TOY_COMMAND = (
    "from fedhess.domains import BENCHMARKS; BENCHMARKS['Toy'] = 'toy:open_toy'; "
    "from fedhess.simulate import main; main()"
)
# What makes a run of the toy quick, and a held-out split to select by; a plain Flower strategy has its own server.
TOY_OF_FLOWER = ["--domains", "Toy", "--domains-args", "holdout=0.25", "--rounds", "3", "--local-steps", "1"]
TOY_OF_FLOWER += ["--batch-size", "8", "--lr", "0.1", "--evaluate-every", "1", "--l2", "0", "--trials", "1"]
TOY = [*TOY_OF_FLOWER, "--server-optimizer", "SGD", "--server-lr", "1"]

GPU_ASKED = re.compile(r"(?<!not )\bgpu\b")  # by -m

collect_ignore = ["support/impatient"]  # a sitecustomize, of which Python has one already
LONGEST = ("faults/test_clients", "deploy/test_local", "promises/", "jobs/", "commands/", "simulations/")
DRAWING = {name: getattr(figures, name) for name in ("_figure", "_draw_map", "rendered")}

Start = Callable[..., "subprocess.Popen[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C interrupt the processes that tests start even where this one was started to ignore it (nohup, &).

    Tests mean the CPU, and find no GPU to take by themselves; with ``-m gpu`` those that need one run alone.
    """
    if not GPU_ASKED.search(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@dataclass(frozen=True)
class Outcome:
    """What a command said and ended with."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cuda(request: pytest.FixtureRequest) -> str:
    """Return the CUDA device; where ``-m gpu`` asked for these tests, its absence is a failure."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        (pytest.fail if GPU_ASKED.search(request.config.option.markexpr) else pytest.skip)("torch sees no CUDA device")
    return "cuda"


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep derived data of the whole session, and of all its workers, in one place, empty at first."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    before = os.environ.get("FEDHESS_CACHE")
    os.environ["FEDHESS_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["FEDHESS_CACHE"]
    else:
        os.environ["FEDHESS_CACHE"] = before


class Blank:
    """A figure and its axes on which nothing is drawn."""

    def __getattr__(self, name: str) -> "Blank":
        if name.startswith("__"):
            raise AttributeError(name)  # numpy's protocols
        return self

    def __getitem__(self, index: object) -> "Blank":
        return self

    def __call__(self, *_: object, **__: object) -> "Blank":
        return self

    def __iter__(self) -> Iterator["Blank"]:
        return iter(())


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[None]:
    """Leave figures blank, whose drawing takes four fifths of a short job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_figure", lambda grid, **_: nullcontext((Blank(), np.full(grid, Blank(), object))))
        patch.setattr(figures, "_draw_map", lambda *_, **__: None)
        patch.setattr(figures, "rendered", lambda *_, **__: b"<svg></svg>")
        yield


@pytest.fixture
def rendered_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures, for the tests that look at them."""
    for name, function in DRAWING.items():
        monkeypatch.setattr(figures, name, function)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Run a command in this process, ``simulate`` unless another is named, in an empty directory; the toy is known."""
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, of: Any = simulate) -> Outcome:
        memory.MEMORY.clear()
        monkeypatch.setattr(sys, "argv", ["fedhess", *map(str, arguments)])
        capsys.readouterr()
        status = run_command(of.cli)
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


def run_apart(command: Any, *arguments: object) -> str:
    """Run a command for a fixture that several tests read; the toy benchmark is known; return what it printed."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
        patch.setattr(sys, "argv", ["fedhess", *map(str, arguments)])
        memory.MEMORY.clear()
        assert run_command(command.cli) == 0
    return said.getvalue()


@pytest.fixture
def data_command(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run the command in this process, with a cache of its own and without a network."""
    monkeypatch.setenv("FEDHESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    monkeypatch.setattr(release, "SIDE", 24)
    monkeypatch.delitem(BENCHMARKS, "Toy")
    return partial(command, of=data)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command as a process of its own, in an empty directory; the toy benchmark is known."""
    started: list[subprocess.Popen[str]] = []
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def begin(arguments: Sequence[object], *, code: str | None = TOY_COMMAND) -> "subprocess.Popen[str]":
        entry = ["-c", code] if code else ["-m", "fedhess.simulate"]
        process = subprocess.Popen(
            [sys.executable, *entry, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
