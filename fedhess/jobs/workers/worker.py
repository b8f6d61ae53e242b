"""What a worker does: one run after the other, each from its checkpoint to its end.

As a program, ``python -m fedhess.jobs.workers.worker``, it reads tasks from standard input and answers each with a
result, both as one line of JSON. It ends when its input ends, even in the middle of a run, and so with its parent.
"""

import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fedhess.base.errors import FederationError, StorageError, UsageError
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.examples import source_examples, source_shares
from fedhess.federation.engines.choice import IN_PROCESS, Engine
from fedhess.federation.server.app import OnRound, make_server_app
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.partition_manifest import make_manifest, record_manifest
from fedhess.settings.run_config import RunConfig

EXPECTED = (FederationError, UsageError, StorageError)  # errors whose message is enough, without a traceback
LOCK_SECONDS = 10.0  # time for the previous worker to end


@dataclass(frozen=True)
class Task:
    """A run, and the context of the process that requests it."""

    job: str  # the job's directory, absolute
    run: str  # the run's directory, relative to the job's
    config: Mapping[str, Any]  # the run's settings, as JSON
    classes: Sequence[str]  # names of the classes
    threads: int  # torch threads if the settings leave them to torch
    folder: str  # the working directory
    path: Sequence[str]  # where modules are imported from

    def to_json(self) -> str:
        """Serialise to one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Result:
    """How a run ended: at its last round, or with a reason for its failure; and its warnings."""

    failure: str | None = None
    warnings: Sequence[str] = ()


def run_to_end(
    directory: RunDirectory,
    config: RunConfig,
    *,
    classes: Sequence[str],
    engine: Engine = IN_PROCESS,
    on_round: OnRound | None = None,
) -> None:
    """Run one run from its checkpoint to its end; if it fails, the reason is recorded in its directory."""
    directory.tidy()
    shares = list(source_shares(config).values())
    record_manifest(directory.path, make_manifest(config, shares, source_examples(config), classes=classes))
    nodes = config.source_clients + len(config.targets)
    try:
        engine.run(
            make_server_app(directory, on_round),
            client_app,
            run_config=config.to_run_config(),
            node_configs=[{"partition-id": index, "num-partitions": nodes} for index in range(nodes)],
        )
    except (FederationError, UsageError) as error:
        directory.record_failure(str(error))
        raise


@contextmanager
def alone_in(directory: RunDirectory) -> Iterator[None]:
    """Keep workers away from a run: on a cluster, a worker may outlive the process that requested it."""
    directory.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory.path / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise FederationError(
            f"another worker still runs it: stop that one (scancel, on Slurm), or wait for it; {directory.path}"
        ) from None


def work(task: Task) -> Result:
    """Run a task; any exception becomes the failure in its result."""
    job, directory = Path(task.job), RunDirectory(Path(task.job) / task.run)
    if not (job / "config.json").exists():
        return Result(
            f"there is no {job} on {os.uname().nodename}; with --ray-address and --slurm give --out a directory that "
            "all machines share"
        )
    os.chdir(task.folder)
    sys.path += [entry for entry in task.path if entry not in sys.path]
    torch.set_num_threads(task.threads)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with _collected_warnings() as warnings:
        try:
            with alone_in(directory):
                run_to_end(directory, RunConfig.checked(task.config), classes=task.classes)
        except EXPECTED as error:
            return Result(str(error), warnings)
        except Exception as error:  # noqa: BLE001 - one run's bug must not stop the others
            log = directory.log("worker.log", traceback.format_exc())
            return Result(f"{type(error).__name__}: {error}; the full traceback is in {log}", warnings)
    return Result(None, warnings)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect fedhess's warnings for the requesting process; in a log, or between its lines, they would be lost."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, collector = logging.getLogger("fedhess"), Collector(logging.WARNING)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = before


def main() -> None:
    """Answer tasks until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output that a strategy prints must not mix with replies
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    while True:
        result = work(Task(**json.loads(tasks.get())))
        replies.write(json.dumps(asdict(result)) + "\n")
        replies.flush()


def _read(tasks: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)  # nobody waits for a result any more; the run can be resumed from disk


if __name__ == "__main__":
    main()
