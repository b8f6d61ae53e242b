"""Search the settings of each method, and compare the methods at their best: ``python -m fedhess.sweep``.

A sweep is a job: settings are drawn (from published ranges, a grid, or by Optuna), each is trained, and a selector that
does not look at the target chooses one for each strategy, target and trial.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedhess.cli import options
from fedhess.cli.command import Command, print_results, run_command
from fedhess.settings.run_config import SEARCH

if TYPE_CHECKING:
    from fedhess.results.results import Results

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=SEARCH, show_default=False)


@cli.command(cls=Command)
@partial(options.with_job_options, without=("variants",))
def sweep(
    *,
    draws: Annotated[
        int | None,
        _option(
            "Settings of each strategy, for each target and trial; the first has the defaults. What is given (--lr, "
            "--strategy-args) is not drawn. [default: 20]"
        ),
    ] = None,
    search: Annotated[
        str | None,
        _option(
            "random (DomainBed's search), or optuna (pip install 'fedhess[optuna]'): each setting follows from the "
            "source validation of those before it. [default: random]"
        ),
    ] = None,
    grid: Annotated[
        str,
        _option(
            "Values in place of draws: alpha=1e-5,1e-4,lr=0.1,0.2 runs every combination; NAME.alpha=... is for "
            "strategy NAME alone."
        ),
    ] = "",
    ranges: Annotated[
        str,
        _option(
            "Ranges in place of the known ones, and for what has none: key=low:high or key=low:high:log, ...; NAME.key "
            "is for strategy NAME alone.",
            "--range",
        ),
    ] = "",
    show_ranges: Annotated[
        bool, _option("Print what is searched, with its source, and stop.", "--show-ranges")
    ] = False,
    config: options.Config = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    **given: Any,
) -> None:
    """Search the settings of each method, train every one, and compare the methods at what was selected.

    Without --grid or --range the ranges are those that the methods' authors or DomainBed published; see --show-ranges.
    The target is never looked at.
    """
    from fedhess.jobs.progress import Progress
    from fedhess.jobs.running import open_job
    from fedhess.results.choices import range_table
    from fedhess.results.results import run_and_report

    del config  # its options are defaults of the others
    progress = Progress(silent=quiet or as_json)
    asked = {"search": search, "draws": draws, "grid": grid, "ranges": ranges}
    job, engine = open_job(given, progress, search=asked, needs_weights=not show_ranges)
    if show_ranges:
        typer.echo(json.dumps(job.search, indent=2) if as_json else range_table(job))
        return
    results, files = run_and_report(job, progress, engine)
    print_results(results.summary, results.table, files, quiet=quiet, as_json=as_json)


def search(
    *,
    domains: str | None = None,
    strategy: str | Sequence[str] | None = None,
    draws: int | None = None,
    search: str | None = None,
    grid: Mapping[str, Sequence[Any]] | str = "",
    ranges: Mapping[str, str] | str = "",
    quiet: bool = True,
    **options_and_settings: Any,
) -> "Results":
    """Search the settings of strategies as ``fedhess sweep`` does.

    Args:
        domains: Name of a benchmark, or ``folder:PATH``; by default PACS.
        strategy: One or several; by default hgp.
        draws: Settings of each strategy, for each target and trial; by default 20.
        search: ``"random"``, the default, or ``"optuna"``.
        grid: Values in place of draws, as ``{"alpha": [1e-5, 1e-4]}``.
        ranges: Ranges in place of the known ones, as ``{"alpha": "1e-5:1e-3:log"}``.
        quiet: Whether to print warnings only, on stderr.
        **options_and_settings: Every other option of the command, as for :func:`run`.

    Returns:
        Rows, table and models, as for :func:`run`.

    Raises:
        UsageError: An option is wrong, or the data cannot be read; the message says what to do.

    Example:
        >>> import fedhess
        >>> results = fedhess.search(domains="PACS", strategy=["erm", "hgp"], draws=20)  # doctest: +SKIP
    """
    from fedhess.base.errors import UsageError
    from fedhess.results.results import run_given

    if "range" in options_and_settings:
        raise UsageError("there is no option 'range'; in Python it is ranges={'alpha': '1e-5:1e-3:log'}")
    if options_and_settings.get("variants"):
        raise UsageError("variants: a search makes its own settings; give grid={'lr': [0.3, 0.7]}, or use fedhess.run")

    def joined(values: Mapping[str, Any] | str) -> str:
        if isinstance(values, str):
            return values
        listed = {key: each if isinstance(each, list | tuple | range) else [each] for key, each in values.items()}
        several = {key: ",".join(map(str, each)) for key, each in listed.items()}
        return ",".join(f"{key}={text}" for key, text in several.items())

    asked = {"search": search, "draws": draws, "grid": joined(grid), "ranges": joined(ranges)}
    return run_given({"domains": domains, "strategy": strategy} | options_and_settings, search=asked, quiet=quiet)


if __name__ == "__main__":
    sys.exit(run_command(cli))
