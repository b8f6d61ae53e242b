"""What the scenarios share: a configuration of one job, the job run and summed up as a row, and the command's frame."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.announcements import stand_in_warning
from fedhess.cache import digest_of
from fedhess.config import Scalar
from fedhess.domains import open_benchmark
from fedhess.environment import resolve_device
from fedhess.errors import FederationError, UsageError, did_you_mean
from fedhess.job import Job, plan_job, slug
from fedhess.job_directory import job_directory
from fedhess.progress import Progress
from fedhess.recipes import default_strategy_args
from fedhess.runs import StorageError
from fedhess.simulate import run_job
from simulations.comparison import Comparison, draw, render
from simulations.records import Row, add_row, load_record

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("runs") / "quick"  # what is measured in a hurry is no result

StrategyOption = Annotated[str, typer.Option(help="Strategies, separated by commas; all takes each of the scenario.")]
SeedsOption = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
PerDomainOption = Annotated[int, typer.Option(help="The first so many examples of each domain; 0 takes all.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Few examples and rounds, to see that it works.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for NAME.json, .md and .png. [default: simulations/results, quick: runs/quick]"),
]
RunsOption = Annotated[
    Path | None, typer.Option(help="Keep the jobs' directories here, and continue interrupted ones. [default: dropped]")
]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:N or mps.")]


@dataclass(frozen=True)
class Configuration:
    """One job of a scenario: one strategy, one seed, every target.

    Attributes:
        benchmark: A benchmark's name.
        strategy: A strategy's name.
        seed: Of the run, and of the benchmark where that is made at random.
        options: Options of the benchmark.
        strategy_args: Arguments of the strategy beside those of the recipes.
        overrides: Settings beside those of the recipes, by their name in ``RunConfig``.
        target: As ``--target`` of ``fedhess.simulate``.
    """

    benchmark: str
    strategy: str
    seed: int
    options: Mapping[str, Scalar] = field(default_factory=dict)
    strategy_args: Mapping[str, Scalar] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    target: str = "all"


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


def measure(configuration: Configuration, *, folder: Path, device: str = "auto") -> Row:
    """Run one job, or continue it, and sum it up.

    Args:
        configuration: The job.
        folder: Where the job's directory is or will be; its name tells configurations apart.
        device: As ``--device``.

    Returns:
        JSON: what ran on which data, settings, environment, accuracy (percent) on sources and targets; or the reason
        why the federation stopped.

    Raises:
        UsageError: Data or settings are not possible.
        StorageError: A round could not be written.
    """
    progress = Progress(silent=not sys.stdout.isatty())
    benchmark = open_benchmark(
        configuration.benchmark, seed=configuration.seed, options=configuration.options, notify=progress.note
    )
    if benchmark.stand_in_for:
        progress.warn(stand_in_warning(benchmark))
    name = f"{slug(benchmark.title)}-{configuration.strategy}-{configuration.seed}"
    job = plan_job(
        benchmark,
        strategies=[configuration.strategy],
        strategy_args=configuration.strategy_args,
        target=configuration.target,
        trials=1,
        overrides={**configuration.overrides, "seed": configuration.seed, "device": resolve_device(device)},
        out=folder / f"{name}-{digest_of([json.dumps(asdict(configuration), sort_keys=True)])[:8]}",
    )
    started = time.monotonic()
    with job_directory(job.path, job.description, resume=True):
        try:
            summary: dict[str, Any] = run_job(job, progress)
        except FederationError as error:
            return _row(job) | {"accuracy": {}, "stopped": str(error).splitlines()[0]}
    result = summary["strategies"][configuration.strategy]
    accuracy = {"sources": result["sources"]["mean"]}
    accuracy |= {target: cell["mean"] for target, cell in result["accuracy"].items()}
    return _row(job) | {
        "accuracy": accuracy,
        "average": result["average"]["mean"],
        "protocol": summary["protocol"],
        "failures": result["failures"],
        "seconds": round(time.monotonic() - started, 1),
    }


def _row(job: Job) -> Row:
    """Say what a job is, without the paths of this machine."""
    config, dataset = job.runs[0].config, job.description["dataset"]
    kept = {key: value for key, value in job.description["settings"].items() if key not in ("data_dir", "device")}
    record = json.loads((job.path / "config.json").read_text(encoding="utf-8"))
    return {
        "benchmark": job.benchmark.title,
        "strategy": config.strategy,
        "seed": config.seed,
        "per_domain": int(config.domains_options.get("per_domain", 0)),
        "settings": kept | {"strategy_args": dict(config.strategy_args)},
        "options": {key: value for key, value in dataset["options"].items() if key not in ("data_dir", "seed")},
        "counts": dataset["counts"],
        "digest": dataset["digest"],
        "device": config.device,
        "environment": record["environment"],
    }


def run_scenario(
    comparison: Comparison,
    configurations: Sequence[Configuration],
    *,
    quick: bool,
    out: Path | None,
    runs: Path | None,
    device: str,
) -> bool:
    """Run the jobs of a scenario; after each, merge its row into the results, so that little is lost by stopping.

    Args:
        comparison: How the results are shown.
        configurations: The jobs.
        quick: Whether they are only to show that it works.
        out: Folder of the results.
        runs: Folder of the jobs' directories.
        device: As ``--device``.

    Returns:
        Whether every job came to its end.

    Raises:
        UsageError: Data, settings or the folder are not possible.
        StorageError: Results could not be written.
    """
    folder = out or (QUICK_RESULTS if quick else RESULTS)
    path = folder / f"{comparison.name}.json"
    load_record(path, quick=quick)  # before anything is run
    complete = True
    with ExitStack() as stack:
        jobs = runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, configuration in enumerate(configurations, start=1):
            row = measure(configuration, folder=jobs, device=device)
            complete = complete and "stopped" not in row
            typer.echo(f"[{number}/{len(configurations)}] {_said(row, comparison)}")
            record = add_row(path, row, quick=quick)
            path.with_suffix(".md").write_text(render(comparison, record) + "\n", encoding="utf-8")
    typer.echo("\n" + render(comparison, record))
    draw(comparison, record, path.with_suffix(".png"))
    typer.echo(f"\nwritten: {', '.join(str(path.with_suffix(ending)) for ending in ('.json', '.md', '.png'))}")
    return complete


def _said(row: Row, comparison: Comparison) -> str:
    what = f"{row['benchmark']}, {row['strategy']}, seed {row['seed']}"
    if "stopped" in row:
        return f"{what}: {row['stopped']}"
    cells = [f"{comparison.label(column)} {value:.1f}" for column, value in row["accuracy"].items()]
    return f"{what}: {', '.join(cells)} ({row['seconds']:.0f} s)"


def hasten(configuration: Configuration, *, rounds: int, annealed: int) -> Configuration:
    """Shorten a configuration for ``--quick``: fewer rounds, and annealing, if there is any, early enough to see."""
    recipe = default_strategy_args(configuration.benchmark, configuration.strategy)
    args = {"anneal_steps": annealed} if (recipe | dict(configuration.strategy_args)).get("anneal_steps") else {}
    overrides = {**configuration.overrides, "rounds": rounds}
    return replace(configuration, overrides=overrides, strategy_args={**configuration.strategy_args, **args})


def run_command(cli: Callable[[], object], name: str) -> None:
    """Run a scenario's command; a mistake of the user ends with one message and status 2, a full disk with 1."""
    try:
        cli()
    except (UsageError, StorageError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) else 1)
