"""What the scenario commands share: their options, and the loop that runs their jobs and records the results."""

import dataclasses
import inspect
import tempfile
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.alignment.loading import find_method, resolved_args
from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing
from fedhess.domains import open_benchmark
from fedhess.settings.assignments import Scalar
from fedhess.settings.defaults import default_strategy_args
from fedhess.simulations.scenarios.comparison import Comparison, draw, render
from fedhess.simulations.scenarios.measurement import Configuration, measure
from fedhess.simulations.scenarios.outputs import (
    QUICK_RESULTS,
    RESULTS,
    AllowDirtyOption,
    RenderOption,
    require_ready,
)
from fedhess.simulations.scenarios.records import Record, Row, add_row, load_record

SeedsOption = Annotated[str, typer.Option(help="Seeds, separated by commas.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that every scenario command has."""

    strategy: Annotated[
        str, typer.Option(help="Strategies, separated by commas, as fedhess.simulate takes them. [all: the scenario's]")
    ] = "all"
    per_domain: Annotated[int, typer.Option(help="The first so many examples of each domain; 0 takes all.")] = 0
    quick: Annotated[bool, typer.Option("--quick", help="Few examples and rounds, to see that it works.")] = False
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for NAME.json, .md, .png and .svg. [default: simulations/results, quick: runs/quick]"
        ),
    ] = None
    runs: Annotated[
        Path | None,
        typer.Option(help="Keep the jobs' directories here, and continue interrupted ones. [default: dropped]"),
    ] = None
    device: Annotated[str, typer.Option(help="As --device of python -m fedhess.simulate.")] = "auto"
    allow_dirty: AllowDirtyOption = False
    render_only: RenderOption = False

    def strategies(self, default: Sequence[str]) -> list[str]:
        """Return the chosen strategies, which may include a user's own; ``all`` means the scenario's."""
        if self.strategy.strip() == "all":
            return list(default)
        names = [name.strip() for name in self.strategy.split(",") if name.strip()]
        if not names:
            raise UsageError(f"--strategy: expected all or some of {', '.join(default)}, got nothing")
        for name in names:
            find_method(name)
        return list(dict.fromkeys(names))

    def examples(self, *, quick: int) -> int:
        """Return how many examples of each domain are taken; 0 for all."""
        return self.per_domain or (quick if self.quick else 0)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add every option of :class:`Options` to a command, which gets them as its first argument, before its own."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = typing.get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(each.name, keyword, default=each.default, annotation=hints[each.name])
        for each in dataclasses.fields(Options)
    ]
    own = list(inspect.signature(function).parameters.values())[1:]

    def command(**given: Any) -> None:
        options = Options(**{each.name: given.pop(each.name) for each in shared})
        function(options, **given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
    return command


def read_seeds(given: str) -> list[int]:
    """Read ``--seeds``."""
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--seeds: expected whole numbers separated by commas, as in 0,1, got {given!r}")
    return list(dict.fromkeys(map(int, parts)))


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


def shorten(configuration: Configuration, *, rounds: int, annealed: int) -> Configuration:
    """Shorten a configuration for ``--quick``: fewer rounds, and annealing, if any, early enough to take effect."""
    benchmark = open_benchmark(configuration.benchmark, options=configuration.options, held=())
    model = str(configuration.overrides.get("model", benchmark.default_model))
    recipe = default_strategy_args(configuration.strategy, model=model, benchmark=benchmark.recipe or benchmark.name)
    resolved = resolved_args(configuration.strategy, recipe | dict(configuration.strategy_args))
    args = {key: annealed for key, value in resolved.items() if key.endswith("anneal_steps") and value}
    overrides = {**configuration.overrides, "rounds": rounds}
    return replace(configuration, overrides=overrides, strategy_args={**configuration.strategy_args, **args})


def run_scenario(
    comparison: Comparison,
    configurations: Sequence[Configuration],
    options: Options,
    *,
    run: Callable[..., Row] | None = None,
    render: Callable[[Comparison, Record], str] = render,
    draw: Callable[[Comparison, Record, Path], list[Path]] = draw,
) -> None:
    """Run the jobs of a scenario; after each, merge its row into the results, so that little is lost by stopping."""
    path = (options.out or (QUICK_RESULTS if options.quick else RESULTS)) / f"{comparison.file}.json"
    require_ready(path, allow_dirty=options.allow_dirty, render_only=options.render_only, quick=options.quick)
    record = load_record(path, quick=options.quick)  # before anything is run
    if options.render_only:
        configurations = ()
        _write_table(path, render(comparison, record))
    stopped, started = False, time.monotonic()
    with ExitStack() as stack:
        jobs = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, configuration in enumerate(configurations, start=1):
            row = (run or measure)(configuration, folder=jobs, device=options.device)
            stopped = stopped or "stopped" in row
            minutes = (time.monotonic() - started) / 60 / number * (len(configurations) - number)
            typer.echo(f"[{number}/{len(configurations)}] {_described(row, comparison)}, {minutes:.0f} min left")
            record = add_row(path, row, quick=options.quick)
            _write_table(path, render(comparison, record))
    typer.echo("\n" + render(comparison, record))
    figure = draw(comparison, record, path.with_suffix(".png"))
    typer.echo(f"\nresults: {', '.join(map(str, [path, path.with_suffix('.md'), *figure]))}")
    if stopped:
        raise typer.Exit(1)


def _write_table(path: Path, text: str) -> None:
    with writing(path):
        replace_file(path.with_suffix(".md"), (text + "\n").encode())


def _described(row: Row, comparison: Comparison) -> str:
    what = f"{row['benchmark']}, {row['strategy']}, seed {row['seed']}"
    if "stopped" in row:
        return f"{what}: {row['stopped']}"
    cells = [
        f"{comparison.label(column)} {'n/a' if value is None else format(value, '.1f')}"
        for column, value in row["accuracy"].items()
    ]
    return f"{what}: {', '.join(cells)} ({row['seconds']:.0f} s)"
