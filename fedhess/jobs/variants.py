"""Several settings of a job's strategies to select among: what may vary, how a setting is written and named."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhess.alignment.loading import find_method, resolved_args
from fedhess.alignment.server_step import is_server_setting
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.assignments import Scalar, parse_assignments
from fedhess.settings.combined import bare
from fedhess.settings.run_config import RunConfig

Variant = Mapping[str, Scalar]

# What a client or the server does in a round. Rounds, data and model stay the same, so that rounds are comparable.
VARIED = (
    *("lr", "momentum", "weight_decay", "batch_size", "l2", "client_optimizer", "local_steps", "local_epochs"),
    *("server_lr", "server_optimizer", "weighting", "statistics_batches"),
)
SERVER_ARGS = ("server_optimizer_args", "server-optimizer-args")
OPTION = "--variants"


def parse_variants(text: str, *, fewest: int = 2) -> list[dict[str, Scalar]]:
    """Read ``"lr=0.01; lr=0.1,alpha=1e-4"``: settings separated by semicolons, each written as for ``--strategy-args``.

    >>> parse_variants("lr=0.01; lr=0.1,alpha=1e-4")
    [{'lr': 0.01}, {'lr': 0.1, 'alpha': 0.0001}]
    """
    parts = [part.strip() for part in text.split(";")]
    if parts == [""]:
        return []
    variants = [parse_assignments(part, option=OPTION) for part in parts]
    if len(variants) < fewest or not all(variants):
        raise UsageError(
            f"{OPTION}: expected several settings separated by semicolons, as in 'lr=0.01; lr=0.1', got {text!r}"
        )
    return variants


def check_variants(variants: Sequence[Variant]) -> None:
    """Check that each setting may vary within a job, and that no variant occurs twice."""
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
    if not variant:
        return "defaults"
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in variant.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def is_run_setting(key: str) -> bool:
    """Whether a key of a variant is a setting of the run, not a strategy's argument."""
    return key in VARIED or is_of_server_args(key)


def overridden(settings: Mapping[str, Any], variant: Variant, strategy: str) -> dict[str, Any]:
    """Return a run's settings overridden by a variant's, except server settings for a plain Flower strategy."""
    if any(map(is_server_setting, variant)) and find_method(strategy).is_flower:
        variant = {key: value for key, value in variant.items() if not is_server_setting(key)}
    changed = dict(settings) | {key: value for key, value in variant.items() if key in VARIED}
    server = {key.partition(".")[2]: value for key, value in variant.items() if is_of_server_args(key)}
    if server:
        changed["server_optimizer_args"] = {**settings.get("server_optimizer_args", {}), **server}
    return changed


def resolve_variants(
    given: Mapping[str, Scalar],
    variants: Sequence[Variant],
    base: Mapping[str, Any],
    defaults: Mapping[str, Mapping[str, Scalar]],
) -> tuple[dict[str, dict[str, Scalar]], list[dict[str, Any]]]:
    """Resolve the arguments of each strategy in each variant.

    Variants that are equal for a strategy (they differ in another method's argument, or in a server setting for a plain
    Flower strategy) run once, as the first of them.

    Returns:
        The arguments that all runs of a strategy share, by strategy; and for each variant its settings, the strategies
        that run it, and the arguments of each strategy.
    """
    resolved: dict[str, dict[int, dict[str, Scalar]]] = {}
    for name in defaults:
        made: list[tuple[dict[str, Any], dict[str, Scalar]]] = []
        resolved[name] = {}
        for number, variant in enumerate(variants or ({},)):
            own = {key: value for key, value in variant.items() if not is_run_setting(key)}
            args = args_for(name, list(defaults), given, defaults[name], own)
            run = overridden(base, variant, name), args
            if run not in made:
                made.append(run)
                resolved[name][number] = args
    shared = {
        name: {
            key: value
            for key, value in next(iter(of.values())).items()
            if all(args.get(key) == value for args in of.values())
        }
        for name, of in resolved.items()
    }
    described = [
        {
            "settings": variant,
            "strategies": sorted(name for name in resolved if number in resolved[name]),
            "arguments": {name: of[number] for name, of in resolved.items() if number in of},
        }
        for number, variant in enumerate(variants)
    ]
    return shared, described


def is_of_server_args(key: str) -> bool:
    """Whether a variant's key is an argument of the server optimizer."""
    return key.partition(".")[0] in SERVER_ARGS


def args_for(
    name: str,
    strategies: Sequence[str],
    given: Mapping[str, Scalar],
    defaults: Mapping[str, Scalar],
    own: Mapping[str, Scalar] | None = None,
) -> dict[str, Scalar]:
    """Return a strategy's arguments, defaults included; it is built once, so that every mistake shows now.

    Args:
        name: The strategy.
        strategies: All strategies of the job.
        given: ``name.key`` applies to one strategy, ``key`` to each that has it. A job's record has its defaults here.
        defaults: Values of arguments that are not given.
        own: Arguments of one setting, which override the given ones. If they change the scale, given values that are
            the defaults of the given scale are ignored.
    """
    args, varied = args_of(name, strategies, given), args_of(name, strategies, own or {})
    scale = {key: value for key, value in args.items() if key.endswith("scale")}
    if any(varied.get(key, value) != value for key, value in scale.items()):
        of_scale = _resolve(name, scale, defaults)
        args = {key: value for key, value in args.items() if value != of_scale.get(key)}
    return _resolve(name, args | varied, defaults)


def args_of(name: str, strategies: Sequence[str], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the given arguments of a strategy, by their own names."""
    args: dict[str, Scalar] = {}
    known = find_method(name).parameters
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
            elsewhere = any(key in find_method(other).parameters for other in strategies)
            if key in known or not elsewhere:
                args[key] = value
    return args


def _resolve(name: str, args: Mapping[str, Scalar], defaults: Mapping[str, Scalar]) -> dict[str, Scalar]:
    recipe = dict(defaults)
    own, usual = bare(name, args), bare(name, recipe)
    if own.get("scale", usual.get("scale")) != usual.get("scale"):
        recipe = {}  # its coefficients are for another scale
    return resolved_args(name, {**recipe, **args})
