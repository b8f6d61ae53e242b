"""The SuperLink's database after a run: nothing of what the clients sent stays in it, nor in its free pages or log."""

import sqlite3
from contextlib import closing
from pathlib import Path

# Tables of Flower 1.41 with what a run's messages are made of. It empties them when a run ends by itself.
OF_MESSAGES = ("object_children", "run_objects", "objects", "message_res", "message_ins")


def forget_runs(database: Path, known: int = 0) -> int:
    """Delete what messages have left once no run is waiting or going on, and write the database anew without it.

    SQLite only marks as free what is deleted, and its write-ahead log has it once more.

    Args:
        database: The SuperLink's, which may have it open.
        known: What this returned before; nothing is done while no other run has ended.

    Returns:
        The number of ended runs that are forgotten.

    Raises:
        sqlite3.OperationalError: It cannot be written, or is in use for longer than a few seconds.
    """
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as link:
        tasks, ended = _tasks(link)
        if ended == known or ended < tasks:
            return known
        link.execute("BEGIN IMMEDIATE")
        tasks, ended = _tasks(link)  # a run may have been started since
        if ended == tasks:
            for table in OF_MESSAGES:
                link.execute(f"DELETE FROM {table}")
        link.execute("COMMIT")
        if ended < tasks:
            return known
        link.execute("VACUUM")
        busy, *_ = link.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return known if busy else ended


def _tasks(link: sqlite3.Connection) -> tuple[int, int]:
    """Count tasks, which runs consist of, and those that have ended."""
    tasks, ended = link.execute("SELECT count(*), count(finished_at) FROM task").fetchone()
    return int(tasks), int(ended)
