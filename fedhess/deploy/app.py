"""The ServerApp of a run that Flower started: it writes a job directory with tables and figures, as the commands do.

The data stays on the nodes, so config.json has its name and options, but no counts and no digest.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhess.alignment.loading import resolved_args
from fedhess.base.environment import torch_threads
from fedhess.base.errors import FederationError, UsageError
from fedhess.deploy.nodes import NODES_VARIABLE, read_nodes
from fedhess.deploy.packing import RESUME_FROM, RUN_DIR
from fedhess.deploy.programs import toml
from fedhess.deploy.settings import round_of
from fedhess.domains import open_benchmark
from fedhess.federation.flower_compat import keeps_node_ids
from fedhess.federation.run_settings import settings_of_run
from fedhess.federation.server.app import Server, log_round
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.directory import job_directory
from fedhess.jobs.growing import record_growth
from fedhess.jobs.job import Job, make_job, make_record, outline
from fedhess.jobs.running import go_back
from fedhess.models.weights import with_recorded_weights
from fedhess.results.files import clear_results, write_report
from fedhess.results.formats import table
from fedhess.results.summary import summarise
from fedhess.settings.assignments import Scalar
from fedhess.settings.combinations import check_combinations
from fedhess.settings.run_config import RunConfig

app = ServerApp()
logger = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, and record a whole job in the run config's ``run-dir``; nothing is written if that is absent."""
    config = with_recorded_weights(settings_of_run(context.run_config))
    check_combinations([config])

    def train(directory: RunDirectory | None) -> None:
        nodes = nodes_of_run(grid, directory)
        Server(grid, config, directory=directory, on_round=log_round, nodes=nodes).run()

    path = run_directory(context.run_config, context.run_id)
    with torch_threads(config.threads):
        if path is None:
            train(None)
        else:
            command = command_of(context.run_config)
            record_run(config, path, train, command=command, resume_from=round_of(context.run_config))


def run_directory(run_config: Mapping[str, Scalar], run_id: int) -> Path | None:
    """Return ``run-dir`` below the SuperLink's folder, ``runs/flower-RUN_ID`` if it is empty, None if it is absent."""
    given = run_config.get(RUN_DIR)
    return None if given is None else Path(str(given) or f"runs/flower-{run_id}").expanduser()


def nodes_of_run(grid: Grid, directory: RunDirectory | None) -> dict[str, int]:
    """Return the only node that may answer for each client: as registered, otherwise as it did when the run began."""
    registered = read_nodes(Path(os.environ[NODES_VARIABLE])) if NODES_VARIABLE in os.environ else {}
    if registered or directory is None or not keeps_node_ids(grid):
        return registered
    return directory.nodes()


def command_of(run_config: Mapping[str, Scalar]) -> list[str]:
    """Return the command of a run. This process's own, by which Flower started it, contains a SuperLink token."""
    settings = " ".join(f"{key}={toml(value)}" for key, value in run_config.items() if value != "")
    return ["flwr", "run", ".", "--run-config", settings]


def record_run(
    config: RunConfig,
    path: Path,
    train: Callable[[RunDirectory], object],
    *,
    command: Sequence[str],
    resume_from: int | None = None,
) -> None:
    """Run, and write what ``fedhess.simulate`` would: config.json, rounds, checkpoint, tables and figures.

    A directory that holds rounds of the same run is continued: ``train`` runs the missing ones.

    Raises:
        UsageError: The directory is in use, cannot be written, or belongs to another run; or it lacks the checkpoint
            of the round ``resume_from``.
    """
    if resume_from is not None and not (path / "config.json").exists():
        raise UsageError(f"--{RESUME_FROM} {resume_from}: there is no job in {path.resolve()}")
    job = replace(_plan(config, path), resume_from=resume_from)
    with (
        _logged_to_stdout(),
        job_directory(path, job.record, resume=path.exists(), options=(RUN_DIR, RUN_DIR), command=command) as changes,
    ):
        if changes:
            logger.warning("continued in another environment; bits may differ: %s", "; ".join(changes))
        go_back(job)
        record_growth(job, changed=bool(changes) or resume_from is not None, command=command)
        try:
            clear_results(path)
            train(job.runs[0].directory)
        except (FederationError, UsageError) as error:
            job.runs[0].directory.record_failure(str(error))
            raise
        finally:  # results written in the meantime lack rows
            clear_results(path)
        summary = summarise(job)
        written = write_report(job, summary)
        logger.info("%s\nwritten: %s", table(summary), ", ".join(map(str, written)))


def _plan(config: RunConfig, path: Path) -> Job:
    benchmark = open_benchmark(config.domains, seed=config.seed, options=config.domains_options, held=())
    own = {"options": dict(config.domains_options), "counts": {d: {} for d in (*config.sources, *config.targets)}}
    args = {config.strategy: resolved_args(config.strategy, config.strategy_args)}
    targets = ["+".join(config.targets)]
    record = make_record(outline(benchmark) | own, config, strategies=args, targets=targets, seeds=[config.seed])
    return make_job(path, record, inner=False)


@contextmanager
def _logged_to_stdout() -> Iterator[None]:
    """Write this package's log to standard output, which Flower's log of the run shows."""
    ours = logging.getLogger("fedhess")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("fedhess: %(message)s"))
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
