"""Plan a job from what a command was given: resolve the defaults, check everything, make the record."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark
from fedhess.domains.scenarios import choose_scenarios, inner_scenarios
from fedhess.jobs.checks import check_names, check_partitions, check_selection, check_settings, check_splits
from fedhess.jobs.growing import grown
from fedhess.jobs.job import Job, make_job, make_record, outline, slug
from fedhess.jobs.reopening import require_same_data
from fedhess.jobs.search import Search, plan_search
from fedhess.jobs.selectors import DEFAULT
from fedhess.jobs.variants import Variant, resolve_variants
from fedhess.models import find_model, prepared_shape
from fedhess.models.building import check_execution
from fedhess.models.weights import with_recorded_weights
from fedhess.settings.assignments import Scalar
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig

MOST_TRIALS = 1000


def plan_job(
    benchmark: Benchmark,
    *,
    strategies: Sequence[str],
    strategy_args: Mapping[str, Scalar],
    target: str,
    trials: int,
    overrides: Mapping[str, Any],
    out: Path | None,
    variants: Sequence[Variant] = (),
    selection: str = DEFAULT,
    search: Search | None = None,
    needs_weights: bool = True,
    recorded: Mapping[str, Any] | None = None,
    threads: int = 0,
) -> Job:
    """Resolve defaults, plan every run, and build model, strategies and optimizer once to see that they can be.

    Args:
        benchmark: The opened benchmark.
        strategies: Names of strategies.
        strategy_args: Their arguments; ``name.key`` applies to one strategy, ``key`` to each that has it.
        target: ``"all"``, a target, several with commas, or several held out at once joined by ``+``.
        trials: Number of seeds, counted up from the run's seed.
        overrides: Settings from the command line, by their name in ``RunConfig``.
        out: The job's directory; by default a new one under ``runs/``.
        variants: Settings of every strategy to select among.
        selection: ``"source"``; or ``"lodo"``, which adds the runs that cross-validation needs.
        search: What the settings of each strategy come from in place of ``variants``.
        needs_weights: Whether the model's pretrained weights must be at hand; not where the job is only looked at.
        recorded: The record of the job in ``out`` that this one continues or adds to; its runs stay what they are.
        threads: Of torch, for a model whose defaults have none; 0 leaves them to torch.

    Raises:
        UsageError: A name is unknown, a value is out of range, or the data cannot be read.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    check_names(strategies)
    check_selection(selection, variants, benchmark, search=search, private=bool(overrides.get("dp_epsilon")))
    outer = choose_scenarios(benchmark, target)
    if selection == "lodo":
        inner_scenarios(benchmark, outer)  # raises where there can be none
    model = str(overrides.get("model", benchmark.default_model))
    find_model(model)
    base = default_settings(model, benchmark=benchmark.recipe or benchmark.name) | dict(overrides)
    base |= {"model": model, "domains": benchmark.name, "stand_in_for": benchmark.stand_in_for}
    base |= {"sources": outer[0].sources, "targets": outer[0].targets, "threads": base.get("threads") or threads}
    first = with_recorded_weights(RunConfig.checked(base))
    seeds = [first.seed + trial for trial in range(trials)]
    args, of_variants, searched = _settings_of(
        benchmark, first, strategies, strategy_args, variants, search, {} if recorded else overrides,
        seeds=list(dict.fromkeys([*(recorded["seeds"] if recorded else ()), *seeds])),
    )  # fmt: skip
    targets = [scenario.name for scenario in outer]
    record = make_record(
        outline(benchmark), first, strategies=args, targets=targets, seeds=seeds, variants=of_variants, search=searched
    )
    if recorded is not None:
        record = grown(recorded, record)
    path = out if out is not None else _new_path(benchmark, strategies)
    job = make_job(path, record, inner=selection == "lodo", selection=selection, benchmark=benchmark)
    configs = [run.config for run in job.runs]
    check_settings(configs, needs_weights=needs_weights)
    check_execution(first, prepared_shape(model, benchmark.input_shape))
    if recorded is not None:
        require_same_data(path, recorded["dataset"], benchmark.identity())
    else:
        record["dataset"] = benchmark.identity()
    check_splits(benchmark, configs)
    check_partitions(benchmark, configs)
    return replace(job, record=record, before=recorded)


def _settings_of(
    benchmark: Benchmark,
    first: RunConfig,
    strategies: Sequence[str],
    given: Mapping[str, Scalar],
    variants: Sequence[Variant],
    search: Search | None,
    overrides: Mapping[str, Any],
    *,
    seeds: Sequence[int],
) -> tuple[dict[str, dict[str, Scalar]], list[dict[str, Any]], Mapping[str, Any]]:
    """Return what all runs of each strategy share, every variant, and what a sweep, drawn for ``seeds``, searches."""
    recipe = benchmark.recipe or benchmark.name
    defaults = {name: default_strategy_args(name, model=first.model, benchmark=recipe) for name in strategies}
    if search is None:
        return *resolve_variants(given, variants, first.model_dump(), defaults), {}
    return plan_search(search, given, overrides, first, defaults, benchmark=recipe, seeds=seeds)


def _new_path(benchmark: Benchmark, strategies: Sequence[str]) -> Path:
    """Name a directory that does not exist: data, strategies and time, with a number where that is taken."""
    names = "-".join(map(slug, strategies))
    path = Path("runs") / f"{slug(benchmark.title)}_{names}_{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())
