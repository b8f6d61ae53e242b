"""The server step, taken by the run's optimizer along the mean update or by a plain Flower strategy."""

import inspect
from collections.abc import Mapping, Sequence

from flwr.serverapp import strategy as flower

from fedhess.alignment.loading import find_method, load_strategy
from fedhess.base.errors import UsageError
from fedhess.settings.assignments import Scalar

SERVER_SETTINGS = (
    *("server_optimizer", "server_lr", "server_lr_schedule", "server_warmup_rounds"),
    *("server_optimizer_args", "weighting", "update_mean"),
)

# Flower's strategies whose aggregate is the weighted mean, or a step from it; FedMedian, Krum and others have none.
_MEANS = (flower.FedAvg, flower.FedAvgM, flower.FedAdagrad, flower.FedAdam, flower.FedYogi)
_BY_EXAMPLES = inspect.signature(flower.FedAvg).parameters["weighted_by_key"].default


def is_server_setting(key: str) -> bool:
    """Whether a setting, or a key of a variant, configures the run's server.

    >>> is_server_setting("server-optimizer-args.eps"), is_server_setting("lr")
    (True, False)
    """
    return key.partition(".")[0].replace("-", "_") in SERVER_SETTINGS


def require_server(
    strategies: Sequence[str], given: Mapping[str, object], variants: Sequence[Mapping[str, object]] = ()
) -> None:
    """Check that server settings, if any are given, have an effect on at least one strategy.

    ``given`` has the values of settings by their name in ``RunConfig``; None means that a setting was not given.
    """
    options = [f"--{key.replace('_', '-')}" for key in given if is_server_setting(key) and given[key] is not None]
    options += [f"--variants: {key}" for variant in variants for key in variant if is_server_setting(key)]
    if options and strategies and all(find_method(name).is_flower for name in strategies):
        raise UsageError(
            f"{options[0]}: expected a strategy that steps by the run's server optimizer, got "
            f"{', '.join(map(repr, strategies))}, a plain Flower strategy with a server of its own; leave the option "
            "out, its own arguments go into --strategy-args"
        )


def describe_server(optimizer: str, args: Mapping[str, Mapping[str, Scalar]]) -> str:
    """Describe who takes the server's step, given the run's optimizer and every strategy's arguments by its name.

    >>> describe_server("SGD lr 1", {"erm": {}, "fedadam": {}})
    'SGD lr 1 (fedadam: FedAdam of Flower, by examples)'
    """
    own = {name: text for name in args if (text := _own_server(name, args[name]))}
    if len(args) == len(own) == 1:
        return own.popitem()[1]
    listed = "; ".join(f"{name}: {text}" for name, text in own.items())
    if len(own) == len(args):
        return listed
    return f"{optimizer} ({listed})" if own else optimizer


def _own_server(name: str, args: Mapping[str, Scalar]) -> str:
    """Describe the server of a plain Flower strategy; nothing for a strategy that steps by the run's optimizer."""
    try:
        method, strategy = find_method(name), load_strategy(name, args)
    except UsageError:  # the strategy of a recorded job may be installed elsewhere only
        return "not known, the strategy cannot be loaded here"
    if not method.is_flower:
        return ""
    base = next(each for each in method.cls.__mro__ if each.__module__.startswith("flwr."))
    same = method.cls.__name__ == base.__name__
    text = f"{base.__name__} of Flower" if same else f"{method.cls.__name__}, a Flower strategy"
    if base in _MEANS and method.cls.aggregate_train is base.aggregate_train:
        key = str(getattr(strategy, "weighted_by_key", _BY_EXAMPLES))
        text += ", by examples" if key == _BY_EXAMPLES else f", by {key}"
    return text
