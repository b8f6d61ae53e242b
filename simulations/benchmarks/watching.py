"""Watch a command from outside, round by round: memory and open files of its processes, and the seconds of a round."""

import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from fedhess.base.errors import FederationError
from fedhess.deploy.processes import marked_processes

WATCHED = "FEDHESS_WATCHED"  # an environment variable that every process of the command inherits
POLL_SECONDS = 0.1
KEPT_LINES = 20


class Held(NamedTuple):
    """The most that one process held during a round: resident memory (MB) and open files."""

    megabytes: float = 0.0
    files: int = 0


@dataclass
class Watched:
    """What was observed of a command."""

    programs: dict[int, str] = field(default_factory=dict)  # the name of each process's program, by process id
    # By round from 1: what each process held at most, by process id
    held: dict[int, dict[int, Held]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # by round from 1: wall time as rounds.jsonl has it

    def lasting(self) -> dict[str, list[int]]:
        """Return the processes that lived from the first round to the last, by program."""
        found: dict[str, list[int]] = {}
        for pid in sorted(set.intersection(*(set(self.held[number]) for number in self.seconds))):
            found.setdefault(self.programs[pid], []).append(pid)
        return found

    def series(self) -> dict[str, list[float]]:
        """Return by round: seconds, number of processes, and what each program's lasting processes held."""
        rounds = sorted(self.seconds)
        named = {"a round (s)": [self.seconds[number] for number in rounds]}
        named["processes"] = [float(len(self.held[number])) for number in rounds]
        for program, pids in self.lasting().items():
            many = f"{len(pids)} x {program}" if len(pids) > 1 else program
            each = [[self.held[number][pid] for pid in pids] for number in rounds]
            named[f"{many}: memory (MB)"] = [sum(held.megabytes for held in own) for own in each]
            named[f"{many}: open files"] = [float(sum(held.files for held in own)) for own in each]
        return named

    def look(self, mark: str, *, server_round: int) -> None:
        """Record what every process holds now."""
        own = self.held.setdefault(server_round, {})
        for process in marked_processes(mark, variable=WATCHED):
            with suppress(psutil.Error):  # it has just ended
                now, most = Held(process.memory_info().rss / 1e6, process.num_fds()), own.get(process.pid, Held())
                own[process.pid] = Held(max(now.megabytes, most.megabytes), max(now.files, most.files))
                if words := process.cmdline():  # empty once it is ending
                    self.programs[process.pid] = _program(words)
                self.programs.setdefault(process.pid, "")


def watch(command: Sequence[str], *, rounds: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end, and watch it and everything that it starts.

    Raises:
        FederationError: The command failed, or wrote no round.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; the command has ended.
    """
    mark, watched = uuid.uuid4().hex, Watched()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended, too
    output = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill up and stop the command
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | dict(environment or {}) | {WATCHED: mark},
    )
    try:
        while process.poll() is None:
            watched.look(mark, server_round=max(_seconds(rounds), default=0) + 1)
            time.sleep(POLL_SECONDS)
    finally:
        process.terminate()
        process.wait()
        signal.signal(signal.SIGTERM, before)
    watched.seconds = {number: seconds for number, seconds in _seconds(rounds).items() if number in watched.held}
    if process.returncode != 0 or not watched.seconds:
        output.seek(0)
        tail = "\n".join(output.read().decode(errors="replace").splitlines()[-KEPT_LINES:])
        raise FederationError(f"{' '.join(command)} ended with status {process.returncode}; its last words:\n{tail}")
    return watched


def _program(words: Sequence[str]) -> str:
    """Name the program of a process: Flower's by its own name, ours by its module."""
    names = [Path(word).name for word in words]
    flower = next((name for name in names if name.startswith(("flower-", "flwr"))), None)
    return flower or (words[words.index("-m") + 1] if "-m" in words[:-1] else names[0])


def _seconds(rounds: Path) -> dict[int, float]:
    """Read the wall time of each recorded round, except the evaluation before the first."""
    if not rounds.exists():
        return {}
    whole = rounds.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return {row["round"]: float(row["seconds"]) for row in map(json.loads, whole) if row["round"] > 0}
