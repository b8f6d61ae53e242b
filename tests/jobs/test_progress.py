"""What is said while a job runs: plain lines elsewhere, a bar on a terminal, warnings wherever."""

import contextlib
import pty
import re
from typing import Any

import pytest
from rich.console import Console

from fedhess.jobs import progress as progress_module
from fedhess.jobs.progress import Progress, scores

ROWS = [
    {"round": 1, "domain": "a", "role": "source", "split": "validation", "accuracy": 0.5},
    {"round": 1, "domain": "b", "role": "source", "split": "validation", "accuracy": 0.7},
    {"round": 1, "domain": "t", "role": "target", "split": "all", "accuracy": 0.25},
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_scores_are_the_sources_mean_and_each_target() -> None:
    assert scores(ROWS) == "sources 60.0 %, t 25.0 %"
    assert scores([{**ROWS[2], "accuracy": None}]) == "sources n/a, t n/a"
    in_and_out = [ROWS[2] | {"split": "in"}, ROWS[2] | {"split": "out", "accuracy": 1.0}]
    assert scores(in_and_out) == "sources n/a, t 25.0 %", "a target's out split is the oracle's alone"


def test_lines_are_seconds_apart_and_say_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.start([10, 10])
    progress.add_run(0, "hgp", 0)
    for server_round in range(11):
        clock[0] = float(server_round)
        progress.update(0, server_round, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] hgp, round 5/10: sources 60.0 %, t 25.0 %, 15 s left",
        "[1/2] hgp, round 10/10: sources 60.0 %, t 25.0 %, 10 s left",
    ]


def test_rounds_done_before_a_resume_do_not_count_as_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    progress.start([10, 10])
    progress.add_run(0, "hgp", 10)
    progress.add_run(1, "hgp", 5)
    clock[0] = 8.0
    progress.update(1, 9, ROWS)
    assert capsys.readouterr().out.rstrip().endswith("2 s left"), "4 rounds took 8 s, 1 is left"


def test_ticks_are_seconds_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for second in range(12):
        clock[0] = float(second)
        progress.tick(f"image {second}")
    assert capsys.readouterr().out.splitlines() == ["image 5", "image 10"]


def test_warning_is_boxed_and_survives_silence(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(silent=True).warn("This is not the data that was asked for. " * 3)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == lines[-1]
    assert set(lines[0]) == {"+", "-"}
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 80


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(silent=True)
    progress.note("x")
    progress.tick("x")
    progress.header({"x": "y"})
    progress.start([1])
    progress.add_run(0, "x", 0)
    progress.update(0, 1, ROWS)
    progress.end_run(0)
    progress.stop()
    assert capsys.readouterr() == ("", "")


def test_time_left_is_of_the_whole_job_and_of_what_is_still_to_come(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    progress.start([10, 10, 10])
    for number in range(3):
        progress.add_run(number, f"run {number}", 0)
    clock[0] = 6.0
    progress.update(0, 2, ROWS)  # side by side
    clock[0] = 12.0
    progress.update(1, 4, ROWS)
    progress.end_run(0)  # failed: nothing more comes of it
    clock[0] = 18.0
    progress.update(2, 3, ROWS)
    clock[0] = 9000.0
    progress.update(2, 5, ROWS)
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "84 s left",  # 28 rounds at 3 s each
        "48 s left",
        "26 s left",  # 13 at 2 s
        "2.5 h left",
    ]


def test_terminal_gets_a_bar_for_the_job_and_a_line_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as terminal, open(master, "rb", buffering=0) as screen:

        def console(**given: Any) -> Console:
            return Console(**{**given, "file": terminal}, width=80)

        monkeypatch.setattr(progress_module, "Console", console)
        monkeypatch.setenv("TERM", "xterm")
        progress = Progress()
        progress.start([2, 2, 2])
        for number in range(3):
            progress.add_run(number, f"hgp, target t, seed {number}", 0)
        progress.update(0, 1, ROWS)
        progress.update(1, 1, ROWS)
        progress.update(0, 2, ROWS)
        progress.end_run(0)
        progress.update(2, 1, ROWS)
        progress.stop()
        terminal.close()
        parts = []
        with contextlib.suppress(OSError):  # Linux's EIO: all that was written has been read
            while part := screen.read(4096):
                parts.append(part)
        shown = b"".join(parts).decode()
    *_, last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.replace("\r", "")).split(" runs, ")
    assert re.match(r"\d+ s left", last), "at 80 columns the time left is not cut off"
    assert "━" in shown
    assert "1 of 3" in shown
    lines = [f"[{n}/3] hgp, target t, seed {n - 1}, round 1/2: sources 60.0 %, t 25.0 %" for n in (2, 3)]
    assert [line.strip() for line in last.splitlines()[1:] if line.strip()] == lines, "the ended run has no line"
    assert "[1/3] hgp, target t, seed 0, round 2/2: sources 60.0 %, t 25.0 %\r\n" in shown, "it stays above"
