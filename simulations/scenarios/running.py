"""What the scenarios share: their options, the jobs run one after the other, and the command's frame."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedhess.alignment.loading import resolved_args
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.files import replace_file, writing
from fedhess.domains import open_benchmark
from fedhess.settings.defaults import default_strategy_args
from fedhess.settings.run_config import Scalar
from fedhess.simulations.scenarios.comparison import Comparison, draw, render
from fedhess.simulations.scenarios.measurement import Configuration, measure
from fedhess.simulations.scenarios.outputs import require_ready
from fedhess.simulations.scenarios.records import Record, Row, add_row, load_record

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path("runs") / "quick"  # what is measured in a hurry is no result

StrategyOption = Annotated[str, typer.Option(help="Strategies, separated by commas; all takes each of the scenario.")]
SeedsOption = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
PerDomainOption = Annotated[int, typer.Option(help="The first so many examples of each domain; 0 takes all.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Few examples and rounds, to see that it works.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for NAME.json, .md, .png and .svg. [default: simulations/results, quick: runs/quick]"),
]
RunsOption = Annotated[
    Path | None, typer.Option(help="Keep the jobs' directories here, and continue interrupted ones. [default: dropped]")
]
DeviceOption = Annotated[str, typer.Option(help="As --device of python -m fedhess.simulate.")]


def plan(
    benchmarks: Mapping[str, Mapping[str, Scalar]], strategies: Sequence[str], seeds: Sequence[int]
) -> list[Configuration]:
    """Combine benchmarks (with their options), strategies and seeds; the first seed of everything comes first."""
    return [
        Configuration(benchmark, strategy, seed, options)
        for seed in seeds
        for benchmark, options in benchmarks.items()
        for strategy in strategies
    ]


def choose(given: str, known: Sequence[str]) -> list[str]:
    """Read ``--strategy``.

    Raises:
        UsageError: A strategy is not part of the scenario, or none is left.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"--strategy: {name!r} is not part of this scenario; {did_you_mean(name, known)}, or all")
    if not names:
        raise UsageError(f"--strategy: expected all or some of {', '.join(known)}, got nothing")
    return list(dict.fromkeys(names))


def read_seeds(given: str) -> list[int]:
    """Read ``--seeds``.

    Raises:
        UsageError: It is no list of whole numbers of at least 0.
    """
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--seeds: expected whole numbers separated by commas, as in 0,1, got {given!r}")
    return list(dict.fromkeys(map(int, parts)))


def run_scenario(
    comparison: Comparison,
    configurations: Sequence[Configuration],
    *,
    quick: bool,
    out: Path | None,
    runs: Path | None,
    device: str,
    allow_dirty: bool,
    render_only: bool,
) -> bool:
    """Run the jobs of a scenario; after each, merge its row into the results, so that little is lost by stopping.

    Args:
        comparison: How the results are shown.
        configurations: The jobs.
        quick: Whether they are only to show that it works.
        out: Folder of the results.
        runs: Folder of the jobs' directories.
        device: As ``--device``.
        allow_dirty: Whether results, other than quick ones, may come from a tree with uncommitted changes.
        render_only: Whether table and figure are made of the results there are, and no job is run.

    Returns:
        Whether every job came to its end.

    Raises:
        UsageError: Data, settings or the folder are not possible.
        StorageError: Results could not be written.
    """
    folder = out or (QUICK_RESULTS if quick else RESULTS)
    path = folder / f"{comparison.file}.json"
    require_ready(path, allow_dirty=allow_dirty, render_only=render_only, quick=quick)
    record = load_record(path, quick=quick)  # before anything is run
    if render_only:
        configurations = ()
        _write_table(comparison, record, path)
    complete = True
    with ExitStack() as stack:
        jobs = runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, configuration in enumerate(configurations, start=1):
            row = measure(configuration, folder=jobs, device=device)
            complete = complete and "stopped" not in row
            typer.echo(f"[{number}/{len(configurations)}] {_said(row, comparison)}")
            record = add_row(path, row, quick=quick)
            _write_table(comparison, record, path)
    typer.echo("\n" + render(comparison, record))
    figure = draw(comparison, record, path.with_suffix(".png"))
    typer.echo(f"\nresults: {', '.join(map(str, [path, path.with_suffix('.md'), *figure]))}")
    return complete


def _write_table(comparison: Comparison, record: Record, path: Path) -> None:
    with writing(path):
        replace_file(path.with_suffix(".md"), (render(comparison, record) + "\n").encode())


def _said(row: Row, comparison: Comparison) -> str:
    what = f"{row['benchmark']}, {row['strategy']}, seed {row['seed']}"
    if "stopped" in row:
        return f"{what}: {row['stopped']}"
    cells = [
        f"{comparison.label(column)} {'n/a' if value is None else format(value, '.1f')}"
        for column, value in row["accuracy"].items()
    ]
    return f"{what}: {', '.join(cells)} ({row['seconds']:.0f} s)"


def shorten(configuration: Configuration, *, rounds: int, annealed: int) -> Configuration:
    """Shorten a configuration for ``--quick``: fewer rounds, and annealing, if there is any, early enough to see."""
    benchmark = open_benchmark(configuration.benchmark, options=configuration.options, held=())
    model = str(configuration.overrides.get("model", benchmark.default_model))
    recipe = default_strategy_args(configuration.strategy, model=model, benchmark=benchmark.recipe or benchmark.name)
    resolved = resolved_args(configuration.strategy, recipe | dict(configuration.strategy_args))
    args = {"anneal_steps": annealed} if resolved.get("anneal_steps") else {}
    overrides = {**configuration.overrides, "rounds": rounds}
    return replace(configuration, overrides=overrides, strategy_args={**configuration.strategy_args, **args})
