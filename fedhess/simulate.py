"""Simulate a federation, in this process or on Ray: ``python -m fedhess.simulate --domains PACS``.

Trains on all domains but one and evaluates on the domain left out, for every domain in turn; writes a job directory and
prints one table.
"""

import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from fedhess.cli import options
from fedhess.cli.command import Command, print_results, run_command

if TYPE_CHECKING:
    from fedhess.results.results import Results

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=Command)
@options.with_job_options
def simulate(
    *,
    config: options.Config = None,
    list_all: options.ListAll = False,
    show_partition: options.ShowPartition = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    **given: Any,
) -> None:
    """Train federated on some domains, evaluate on another that was never seen; repeat for every target.

    Where a default depends on the model, --list shows all of a model's settings.
    """
    from fedhess.cli.listing import list_everything
    from fedhess.jobs.partition_manifest import show_partitions
    from fedhess.jobs.progress import Progress
    from fedhess.jobs.running import open_job
    from fedhess.results.results import run_and_report

    del config  # its options are defaults of the others
    if list_all:
        typer.echo(list_everything())
        return
    progress = Progress(silent=quiet or as_json)
    job, engine = open_job(given, progress, needs_weights=not show_partition)
    if show_partition:
        typer.echo(show_partitions(job, as_json=as_json))
        return
    results, files = run_and_report(job, progress, engine)
    print_results(results.summary, results.table, files, quiet=quiet, as_json=as_json)


def run(
    *,
    domains: str | None = None,
    strategy: str | Sequence[str] | None = None,
    target: str | Sequence[str] | None = None,
    quiet: bool = True,
    **options_and_settings: Any,
) -> "Results":
    """Train and evaluate as ``python -m fedhess.simulate`` does.

    Args:
        domains: Name of a benchmark, or ``folder:PATH``; by default PACS.
        strategy: One or several; by default hgp.
        target: Domain never seen in training, several domains, or ``"all"`` in turn (the default).
        quiet: Whether to print warnings only, on stderr.
        **options_and_settings: Every other option of the command, by its name with underscores: ``rounds=20``,
            ``trials=1``, ``out="runs/mine"``, ``strategy_args={"hgp.alpha": 1.0}``. With ``add=True`` the job in
            ``out`` grows by what is given, and with ``resume=True`` it continues; omitted options are that job's.

    Returns:
        Rows, table and models, which are also in the job's directory. Figures are files: :meth:`Results.report`.

    Raises:
        UsageError: An option is wrong, or the data cannot be read; the message says what to do.
        FederationError: A round could not be completed.

    Example:
        >>> import fedhess
        >>> results = fedhess.run(domains="PACS", strategy=["erm", "hgp"], trials=1)  # doctest: +SKIP
    """
    from fedhess.results.results import run_given

    return run_given({"domains": domains, "strategy": strategy, "target": target} | options_and_settings, quiet=quiet)


def main() -> None:
    """Run the command; every mistake of the user ends with one message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="fedhess: %(message)s", stream=sys.stderr)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower's strategies report every round
    status = run_command(cli)
    _abandon_clients(status)
    sys.exit(status)


def _abandon_clients(status: int) -> None:
    """End the process at once if a client still computes: its thread would abort a normal exit of the interpreter."""
    worker = sys.modules.get("fedhess.federation.engines.worker")
    clients = [thread for thread in threading.enumerate() if worker and thread.name == worker.CLIENT_THREAD]
    for thread in clients:
        thread.join(timeout=0.5)
    if any(thread.is_alive() for thread in clients):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
