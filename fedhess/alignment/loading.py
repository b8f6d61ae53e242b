"""Turn the text of ``--strategy`` and ``--strategy-args`` into a strategy object."""

import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import entry_points
from typing import Any

from flwr.serverapp.strategy import FedProx, Strategy

from fedhess.alignment.strategy import DomainStrategy
from fedhess.alignment.strategy_code import strategy_code
from fedhess.base.errors import StrategyError, UsageError, did_you_mean
from fedhess.settings.run_config import RunConfig, Scalar

ENTRY_POINT_GROUP = "fedhess.strategies"

BUILT_IN = {
    "erm": "fedhess.strategies.erm:ERM",
    "hgp": "fedhess.strategies.hgp:HGP",
    "hutchinson": "fedhess.strategies.hutchinson:Hutchinson",
    "irm": "fedhess.strategies.irm:IRM",
    "vrex": "fedhess.strategies.vrex:VREx",
    "coral": "fedhess.strategies.coral:CORAL",
    "iga": "fedhess.strategies.iga:IGA",
    "fish": "fedhess.strategies.fish:Fish",
    "fishr": "fedhess.strategies.fishr:Fishr",
    "fediir": "fedhess.strategies.fediir:FedIIR",
    "server_alignment": "fedhess.strategies.server_alignment:ServerAlignment",
    "groupdro": "fedhess.strategies.groupdro:GroupDRO",
    "fedprox": "fedhess.strategies.fedprox:FedProx",
    "fedadam": "fedhess.strategies.fedadam:FedAdam",
}


@cache
def _installed() -> dict[str, str]:
    """Read the installed entry points once: a search of all packages takes a tenth of a small run."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}


def known_strategies() -> dict[str, str]:
    """Return every strategy that has a name: the built-in ones, then installed entry points, as ``module:Class``."""
    return {**_installed(), **BUILT_IN}


def load_strategy(name: str, args: Mapping[str, Scalar]) -> DomainStrategy | Strategy:
    """Build a strategy.

    Args:
        name: A built-in name, an entry point of group ``fedhess.strategies``, or ``package.module:Class``.
        args: Arguments of its constructor, checked against the constructor's annotations.

    Returns:
        A :class:`DomainStrategy`, or a plain Flower ``Strategy`` (whose clients then train ERM).

    Raises:
        UsageError: The name is unknown, cannot be imported or is no strategy; an argument is unknown, missing, of the
            wrong type or rejected by the constructor.
    """
    strategy_class = load_class(name)
    checked = _checked_args(strategy_class, name, args)
    with strategy_code(name, "constructor", strategy_class):
        try:
            return strategy_class(**checked)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--strategy-args: strategy {name!r} rejects its arguments: {error}") from error


def is_installed(name: str) -> bool:
    """Whether a strategy can be found on this machine; it may be on others."""
    path = name if ":" in name else known_strategies().get(name, "")
    try:
        return importlib.util.find_spec(path.partition(":")[0]) is not None
    except (ImportError, ValueError):  # of a parent package, or no name of a module
        return False


def load_class(name: str) -> type[DomainStrategy] | type[Strategy]:
    """Find the class of a strategy; see :func:`load_strategy`."""
    known = known_strategies()
    path = name if ":" in name else known.get(name)
    if path is None:
        raise UsageError(f"--strategy: unknown strategy {name!r}; {did_you_mean(name, known)}, or package.module:Class")
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError(f"--strategy: expected a name or package.module:Class, got {path!r}")
    try:
        with strategy_code(name, f"import of {module_name}"):
            module = importlib.import_module(module_name)
    except StrategyError as error:
        if isinstance(error.__cause__, ImportError):
            raise UsageError(
                f"--strategy: cannot import {module_name!r} for {name!r}: {error.__cause__}; is it installed, or on "
                "PYTHONPATH?"
            ) from error.__cause__
        raise
    found = getattr(module, attribute, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UsageError(f"--strategy: {module_name} has no {attribute!r}; {did_you_mean(attribute, classes)}")
    if not (inspect.isclass(found) and issubclass(found, DomainStrategy | Strategy)):
        raise UsageError(
            f"--strategy: {path} is no strategy: expected a class derived from fedhess.alignment.DomainStrategy or "
            f"flwr.serverapp.strategy.Strategy, got {found!r}"
        )
    if issubclass(found, FedProx):
        raise UsageError(
            f"--strategy: {path} is the server half of FedProx: its clients would have to add its proximal term to "
            "their loss; use --strategy fedprox"
        )
    return found


def client_half(config: RunConfig) -> DomainStrategy:
    """Build the client half of the run's strategy; under a plain Flower strategy clients train ERM."""
    return _client_half(config.strategy, tuple(sorted(config.strategy_args.items())))


@lru_cache(maxsize=32)
def _client_half(name: str, args: tuple[tuple[str, Scalar], ...]) -> DomainStrategy:
    if not issubclass(load_class(name), DomainStrategy):
        return DomainStrategy()
    return typing.cast(DomainStrategy, load_strategy(name, dict(args)))


def resolved_args(name: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a strategy's arguments, defaults included.

    A default of None is replaced by the object's attribute of that name; without any it is left out.
    """
    strategy = load_strategy(name, args)
    parameters = strategy_parameters(type(strategy)).items()
    defaults = {key: parameter.default for key, parameter in parameters if parameter.default is not parameter.empty}
    values = defaults | _checked_args(type(strategy), name, args)
    made = {key: getattr(strategy, key, None) if value is None else value for key, value in values.items()}
    return {key: value for key, value in made.items() if value is not None}


def strategy_parameters(strategy_class: type) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments of a strategy that text can set: those annotated with scalars."""
    constructor = inspect.getattr_static(strategy_class, "__init__")
    if constructor is object.__init__:
        return {}
    with strategy_code(strategy_class.__qualname__, "annotations of its constructor", constructor):
        hints = typing.get_type_hints(constructor)
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(strategy_class).parameters.items()
        if name in hints and _scalar_types(hints[name])
    }


def _checked_args(strategy_class: type, name: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    parameters = strategy_parameters(strategy_class)
    for key in args:
        if key not in parameters:
            advice = did_you_mean(key, parameters) if parameters else "it takes none"
            raise UsageError(f"--strategy-args: strategy {name!r} has no argument {key!r}; {advice}")
    return {key: _converted(name, key, value, parameters[key].annotation) for key, value in args.items()}


_WANTED = {int: "a whole number", float: "a finite number", bool: "true or false"}


def _converted(name: str, key: str, value: Scalar, annotation: Any) -> Scalar:
    accepted = _scalar_types(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        if value in choices:
            return value
        wanted = " or ".join(map(str, choices))
    elif type(value) in accepted:
        return value
    elif float in accepted and type(value) is int:
        return float(value)
    elif str in accepted:
        return str(value)
    else:
        wanted = " or ".join(_WANTED[kind] for kind in accepted)
    raise UsageError(f"--strategy-args: {key} of strategy {name!r}: expected {wanted}, got {value!r}")


def _scalar_types(annotation: Any) -> tuple[type, ...]:
    """Return the scalar types of an annotation, none if text cannot give its value."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return tuple({type(choice) for choice in options})
    kinds = set(options if origin in (types.UnionType, typing.Union) else (annotation,)) - {type(None)}
    return tuple(kinds) if kinds <= {str, int, float, bool} else ()
