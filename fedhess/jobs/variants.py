"""Several settings of a job's strategies, to select among: what may differ, how each is written and named."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhess.alignment.loading import load_class, resolved_args, strategy_parameters
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.run_config import RunConfig, Scalar, parse_assignments

Variant = Mapping[str, Scalar]

# What a client or the server does in a round; rounds, data and model stay the same, so that a round means one thing.
VARIED = (
    *("lr", "momentum", "weight_decay", "batch_size", "l2", "client_optimizer", "local_steps", "local_epochs"),
    *("server_lr", "server_optimizer", "weighting", "statistics_batches"),
)
SERVER_ARGS = ("server_optimizer_args", "server-optimizer-args")
OPTION = "--variants"


def parse_variants(text: str) -> list[dict[str, Scalar]]:
    """Read ``"lr=0.01; lr=0.1,alpha=1e-4"``: settings separated by semicolons, each as ``--strategy-args`` has them.

    Raises:
        UsageError: A setting is empty or no assignment, or there is only one.

    >>> parse_variants("lr=0.01; lr=0.1,alpha=1e-4")
    [{'lr': 0.01}, {'lr': 0.1, 'alpha': 0.0001}]
    """
    parts = [part.strip() for part in text.split(";")]
    if parts == [""]:
        return []
    variants = [parse_assignments(part, option=OPTION) for part in parts]
    if len(variants) < 2 or not all(variants):
        raise UsageError(
            f"{OPTION}: expected several settings separated by semicolons, as in 'lr=0.01; lr=0.1', got {text!r}"
        )
    return variants


def check_variants(variants: Sequence[Variant]) -> None:
    """Insist that what differs may, and that no setting is there twice.

    Raises:
        UsageError: It is not so.
    """
    for number, variant in enumerate(variants):
        for key in variant:
            if key in RunConfig.model_fields and key not in VARIED:
                raise UsageError(
                    f"{OPTION}: {key!r} must be the same in a whole job; expected a strategy's argument, "
                    f"server_optimizer_args.NAME, or one of {', '.join(VARIED)}"
                )
        if variant in variants[:number]:
            raise UsageError(f"{OPTION}: {describe(variant)!r} is given twice; give each setting once")


def describe(variant: Variant) -> str:
    """Name a variant in tables.

    >>> describe({"lr": 0.1, "alpha": 1e-4})
    'lr=0.1, alpha=0.0001'
    """
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in variant.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def overridden(settings: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return a run's settings with those of a variant in their place."""
    server = {key.partition(".")[2]: value for key, value in variant.items() if _is_servers(key)}
    changed = dict(settings) | {key: value for key, value in variant.items() if key in VARIED}
    return changed | (
        {"server_optimizer_args": {**settings.get("server_optimizer_args", {}), **server}} if server else {}
    )


def strategy_args_of(variant: Variant) -> dict[str, Scalar]:
    """Return those of a variant's settings that are arguments of strategies."""
    return {key: value for key, value in variant.items() if key not in VARIED and not _is_servers(key)}


def _is_servers(key: str) -> bool:
    return key.partition(".")[0] in SERVER_ARGS


def args_for(
    name: str, strategies: Sequence[str], given: Mapping[str, Scalar], defaults: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Pick a strategy's arguments, and build it once so that every mistake shows before anything runs.

    Args:
        name: The strategy.
        strategies: All of the job's.
        given: ``name.key`` applies to one strategy, ``key`` to each that has it.
        defaults: What applies where ``given`` says nothing.

    Raises:
        UsageError: An argument belongs to a strategy that does not run, is unknown, or is rejected.
    """
    args: dict[str, Scalar] = {}
    known = strategy_parameters(load_class(name))
    for key, value in given.items():
        owner, dot, rest = key.rpartition(".")
        if dot and owner not in strategies:
            raise UsageError(
                f"--strategy-args: {key!r} is for strategy {owner!r}, which does not run here; "
                f"{did_you_mean(owner, strategies)}"
            )
        if dot and owner == name:
            args[rest] = value
        elif not dot:
            elsewhere = any(key in strategy_parameters(load_class(other)) for other in strategies)
            if key in known or not elsewhere:
                args[key] = value
    recipe = dict(defaults)
    if args.get("scale", recipe.get("scale")) != recipe.get("scale"):
        recipe = {}  # its coefficients are for another scale
    resolved = resolved_args(name, recipe | args)
    return {key: resolved[key] for key in recipe | args}
