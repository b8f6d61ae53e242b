"""What Flower leaves in the SuperLink's database is deleted once no run goes on."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from fedhess.deploy.database import forget_runs

SENT = b"what a client sent" * 50


@pytest.fixture
def link(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database as Flower makes it, which stays open as the SuperLink's does."""
    SqlObjectStore(str(tmp_path / "superlink.db")).initialize()
    with closing(sqlite3.connect(tmp_path / "superlink.db", isolation_level=None)) as link:
        link.execute("PRAGMA secure_delete = OFF")
        yield link


def begin(link: sqlite3.Connection, task: int) -> None:
    link.execute("INSERT INTO task (task_id, type, run_id, pending_at) VALUES (?, 'a', ?, '2026')", (task, task))
    link.execute("INSERT INTO objects (object_id, content) VALUES (?, ?)", (str(task), SENT))


def end(link: sqlite3.Connection, task: int) -> None:
    link.execute("UPDATE task SET finished_at = '2026' WHERE task_id = ?", (task,))


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("superlink.db*"))


def test_ended_runs_are_forgotten_and_others_are_not_touched(link: sqlite3.Connection, tmp_path: Path) -> None:
    database = tmp_path / "superlink.db"
    assert forget_runs(database) == 0
    begin(link, 1)
    assert forget_runs(database) == 0
    link.execute("DELETE FROM objects")  # as Flower does when the run has ended
    begin(link, 2)
    end(link, 1)
    assert forget_runs(database) == 0, "the second one goes on"
    assert link.execute("SELECT count(*) FROM objects").fetchone() == (1,)
    assert SENT in everything(tmp_path)
    end(link, 2)
    assert forget_runs(database) == 2
    assert SENT not in everything(tmp_path)
    assert link.execute("SELECT count(*) FROM task").fetchone() == (2,)
    assert forget_runs(database, 2) == 2
