"""The small process that a node is started from, in the place of the command."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

# The command: torch is imported, and then it hands over to a program whose code and patience it is given.
COMMAND = """
import sys, torch
from pathlib import Path
from fedhess.deploy.programs import Program
from fedhess.deploy import watch
program = Program(Path(sys.executable).name, ["-c", sys.argv[1]], {"OWN": "yes"})
watch.hand_over([("node", program)], folder=Path("state"), patience=float(sys.argv[2]))
"""
REFUSED_ONCE = """
import os, psutil, sys
from pathlib import Path
there = Path("there")
print(os.environ["OWN"], Path.cwd().name, "megabytes", psutil.Process(os.getppid()).memory_info().rss >> 20)
if not there.exists():
    there.touch()
    sys.exit(7)
"""


def begin(folder: Path, code: str, patience: float) -> "subprocess.Popen[str]":
    (folder / "state").mkdir()
    command = [sys.executable, "-c", COMMAND, code, str(patience)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_node_is_started_again_and_its_lines_have_the_time_and_torch_is_gone(tmp_path: Path) -> None:
    process = begin(tmp_path, REFUSED_ONCE, 60)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    lines = re.findall(r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} yes state megabytes (\d+)$", said)
    assert len(lines) == 2, said
    assert "fedhess: node ended with status 7; once more in 5 s" in said
    assert max(map(int, lines)) < 50, "this process, with torch, has some 500"


def test_what_was_handed_over_ends_with_the_process(tmp_path: Path) -> None:
    process = begin(tmp_path, "import time; print('up', flush=True); time.sleep(600)", 0)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" up\n")
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
