"""Plan a job from a command's options: resolve the defaults, check everything, make the record."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import client_half
from fedhess.alignment.privacy import check_privacy
from fedhess.alignment.rehearsal import check_training
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.users_code import users_code
from fedhess.domains import Benchmark, Scenario, split_domain
from fedhess.domains.partition import read_examples, require_room_for_domains, share_out
from fedhess.domains.scenarios import choose_scenarios
from fedhess.jobs.growing import grown
from fedhess.jobs.job import Job, make_job, make_record, outline, slug
from fedhess.jobs.reopening import require_same_data
from fedhess.jobs.search import Search, plan_search
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.jobs.variants import Variant, check_variants, resolve_variants
from fedhess.models import find_model, prepared_shape
from fedhess.models.building import build_model, check_execution
from fedhess.models.weights import with_recorded_weights
from fedhess.settings.assignments import Scalar
from fedhess.settings.combinations import check_combinations
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
    """Resolve defaults, plan every run, and build model, strategies and optimizer once to check that this works.

    Args:
        benchmark: The opened benchmark.
        strategies: Names of strategies.
        strategy_args: Their arguments; ``name.key`` applies to one strategy, ``key`` to each strategy that has it.
        target: ``"all"``, one target, several separated by commas, or several joined by ``+`` to hold out at once.
        trials: Number of seeds, counted up from the run's seed.
        overrides: Settings from the command line, by their name in ``RunConfig``.
        out: The job's directory; by default a new one under ``runs/``.
        variants: Settings of every strategy to select among.
        selection: ``"source"``; or ``"lodo"``, which adds the runs that cross-validation needs.
        search: The search that each strategy's settings come from, in place of ``variants``.
        needs_weights: Whether the model's pretrained weights must be available; False if the job is only inspected.
        recorded: The record of the job in ``out`` that this one continues or adds to; its runs stay what they are.
        threads: Torch threads for a model whose defaults set none; 0 leaves the number to torch.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    check_names(strategies)
    check_selection(selection, variants, benchmark, search=search, private=bool(overrides.get("dp_epsilon")))
    outer = choose_scenarios(benchmark, target)
    if selection == "lodo":
        check_cross_validation(benchmark, outer)
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
    """Return each strategy's shared arguments, every variant (drawn for ``seeds`` in a sweep), and what is searched."""
    recipe = benchmark.recipe or benchmark.name
    defaults = {name: default_strategy_args(name, model=first.model, benchmark=recipe) for name in strategies}
    if search is None:
        return *resolve_variants(given, variants, first.model_dump(), defaults), {}
    return plan_search(search, given, overrides, first, defaults, benchmark=recipe, seeds=seeds)


def _new_path(benchmark: Benchmark, strategies: Sequence[str]) -> Path:
    """Name a new directory by data, strategies and time, with a number appended if the name is taken."""
    names = "-".join(map(slug, strategies))
    path = Path("runs") / f"{slug(benchmark.title)}_{names}_{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


# -- What must hold before anything runs -------------------------------------------------------------------------------


def check_names(strategies: Sequence[str]) -> None:
    """Check that each strategy is named once and has a directory of its own."""
    if not strategies:
        raise UsageError("--strategy: expected a strategy, or several separated by commas; got nothing")
    by_folder: dict[str, str] = {}
    for name in strategies:
        other = by_folder.setdefault(slug(name).lower(), name)
        if list(strategies).count(name) > 1:
            raise UsageError(f"--strategy: {name!r} is given twice; name each strategy once")
        if other != name:
            raise UsageError(
                f"--strategy: {other!r} and {name!r} would share the directory {slug(name)!r}; run each in a job of "
                "its own"
            )


def check_settings(configs: Sequence[RunConfig], *, needs_weights: bool = True) -> None:
    """Check the settings in combination and against the model."""
    first = configs[0]
    check_combinations(configs)
    check_privacy(configs)
    check_training(configs)
    for config in configs:
        half = client_half(config)
        with users_code(f"strategy {config.strategy!r}", "check", type(half).check):
            half.check(config)
    try:
        model = build_model(first, initial=needs_weights)
    except UsageError as error:
        raise UsageError(f"--model {first.model}: {error}") from error
    for config in configs:
        client_half(config).check_model(model)


def check_selection(
    selection: str,
    variants: Sequence[Variant],
    benchmark: Benchmark,
    *,
    search: Search | None = None,
    private: bool = False,
) -> None:
    """Check that a selector does not look at the target and can compare the variants or a sweep's settings."""
    if selection == "oracle":
        raise UsageError(
            "--selection: the oracle looks at the target and selects nothing here; compare with it afterwards: "
            "python -m fedhess.report RUN --selection source,oracle"
        )
    if selection not in SELECTORS:
        known = [name for name in SELECTORS if name != "oracle"]
        raise UsageError(f"--selection: unknown selector {selection!r}; {did_you_mean(selection, known)}")
    check_variants(variants)
    if private and (variants or search or selection != DEFAULT):
        raise UsageError(
            "--dp-epsilon: the sources of a private run evaluate nothing by which rounds or settings could be "
            "selected; leave out --variants, --search and --selection, and run each setting in a job of its own"
        )
    if search is not None and search.kind == "optuna" and selection != DEFAULT:
        raise UsageError(
            f"--selection {selection}: Optuna's objective is source validation; leave the option out, or take --search "
            "random"
        )
    if (variants or search) and selection == DEFAULT and benchmark.holdout == 0:
        raise UsageError(
            f"{'--variants' if variants else '--search'}: {benchmark.title} holds no source examples out, by which "
            "settings could be told apart; add --selection lodo"
        )


def check_cross_validation(benchmark: Benchmark, scenarios: Sequence[Scenario]) -> None:
    """Check that one source of each scenario can be left out as well."""
    if set(benchmark.domains) != {scenario.name for scenario in benchmark.scenarios}:
        raise UsageError(
            f"--selection lodo: {benchmark.title} fixes its targets, so no source can be left out as well; use "
            "--selection source"
        )
    for scenario in scenarios:
        if len(scenario.sources) < 3:
            raise UsageError(
                f"--selection lodo: expected at least three sources for target {scenario.name}, so that two are left "
                f"to align, got {', '.join(scenario.sources)}; hold out fewer at once, or use --selection source"
            )


def check_splits(benchmark: Benchmark, configs: Sequence[RunConfig]) -> None:
    """Check that every domain to be split has enough examples to hold some out and keep some."""
    rule = configs[0].split
    if rule != "sources" and benchmark.holdout == 0:
        raise UsageError(f"--split {rule}: {benchmark.title} holds no examples out; leave the option out")
    if configs[0].average == "swad" and benchmark.holdout == 0:
        raise UsageError(
            f"--average swad: it follows the loss on examples that the sources hold out, and {benchmark.title} holds "
            "none out; give --average swa or ema"
        )
    split = [config.sources + (config.targets if config.splits_targets else ()) for config in configs]
    for domain in dict.fromkeys(domain for domains in split for domain in domains):
        data = benchmark.load(domain)
        position = benchmark.domains.index(domain)
        for seed in sorted({config.seed for config in configs}):
            kept, held = split_domain(data, rule=rule, holdout=benchmark.holdout, seed=seed, position=position)
            if len(kept) == 0 or len(held) == 0:
                raise UsageError(
                    f"--domains {benchmark.name}: {domain!r} has {len(data)} examples, too few in each class to hold "
                    f"{benchmark.holdout:.0%} out for validation and train on the rest; expected at least 3 a class"
                )


def check_partitions(benchmark: Benchmark, configs: Sequence[RunConfig]) -> None:
    """Check that every client of every run has something to train on."""
    for config in configs:
        if config.partition != "domain":
            examples = read_examples(benchmark, config.sources, rule=config.split, seed=config.seed)
            shares = share_out(config.partition_settings, examples, seed=config.seed)
            require_room_for_domains(shares, batch_size=config.batch_size)
