"""Clear the SuperLink's database after a run: nothing that clients sent stays in it, its free pages or its log."""

import sqlite3
from contextlib import closing
from pathlib import Path

# Tables in which Flower 1.41 stores a run's messages. Flower empties them when a run ends by itself.
OF_MESSAGES = ("object_children", "run_objects", "objects", "message_res", "message_ins")


def forget_runs(database: Path, known: int = 0) -> int:
    """Delete what messages have left once no run is pending or running, and rewrite the database without it.

    SQLite only marks deleted data as free, and its write-ahead log holds another copy.

    Args:
        database: The database, which the SuperLink may have open.
        known: The previous return value; nothing is done until another run has ended.

    Returns:
        The number of ended tasks, which runs consist of, that are forgotten.

    Raises:
        sqlite3.OperationalError: The database cannot be written, or is in use for longer than a few seconds.
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
