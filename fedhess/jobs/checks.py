"""What must hold of a job's settings before anything runs."""

from collections.abc import Sequence

from fedhess.alignment.loading import client_half
from fedhess.alignment.privacy import check_privacy
from fedhess.alignment.rehearsal import check_training
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.domains import Benchmark, split_domain
from fedhess.domains.partition import read_examples, require_room_for_domains, share_out
from fedhess.jobs.job import slug
from fedhess.jobs.search import Search
from fedhess.jobs.selectors import DEFAULT, SELECTORS
from fedhess.jobs.variants import Variant, check_variants
from fedhess.models.prepared import build_model
from fedhess.settings.combinations import check_combinations
from fedhess.settings.run_config import RunConfig


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
    """Check what no single value shows: together, and with the model."""
    first = configs[0]
    check_combinations(configs)
    check_privacy(configs)
    check_training(configs)
    for config in configs:
        client_half(config).check(config)
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
    """Check that a selector does not look at the target, and that it can tell the variants, or a sweep's, apart."""
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


def check_splits(benchmark: Benchmark, configs: Sequence[RunConfig]) -> None:
    """Check that every domain that is split can hold examples out and keep some."""
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
