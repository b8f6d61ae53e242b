"""Turn the text of ``--strategy`` and ``--strategy-args`` into a strategy object."""

import importlib
import importlib.util
import inspect
import re
import traceback
import types
import typing
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import entry_points
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError, did_you_mean
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

# Flower's strategies that are one half of a method, with what their clients must do: ours train ERM under them.
_HALVES: Mapping[type[Strategy], str] = {
    flower.FedProx: "add its proximal term to their loss; use --strategy fedprox",
    flower.FedXgbBagging: "train trees; use a strategy for networks",
    flower.FedXgbCyclic: "train trees; use a strategy for networks",
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
    try:
        return strategy_class(**checked)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--strategy-args: strategy {name!r} rejects its arguments: {error}") from error
    except Exception as error:  # whatever a constructor that is not ours may raise
        raise UsageError(f"--strategy: building {name!r} failed: {_described(error)}; mend it there") from error


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
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", path) is None:
        raise UsageError(f"--strategy: expected a name or package.module:Class, got {path!r}")
    module_name, _, attribute = path.partition(":")
    module = _import(module_name, name)
    found = getattr(module, attribute, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UsageError(f"--strategy: {module_name} has no {attribute!r}; {did_you_mean(attribute, classes)}")
    if not (inspect.isclass(found) and issubclass(found, DomainStrategy | Strategy)):
        raise UsageError(
            f"--strategy: {path} is no strategy: expected a class derived from "
            f"fedhess.alignment.strategy.DomainStrategy or flwr.serverapp.strategy.Strategy, got {found!r}"
        )
    for half, duty in _HALVES.items():
        if issubclass(found, half):
            raise UsageError(
                f"--strategy: {path} is the server half of {half.__name__}: its clients would have to {duty}"
            )
    if inspect.isabstract(found):
        raise UsageError(
            f"--strategy: {path} is abstract; take a class derived from it that has "
            f"{', '.join(sorted(getattr(found, '__abstractmethods__', ())))}"
        )
    return found


def _import(module_name: str, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"--strategy: cannot import {module_name!r} for {name!r}: {error}; is it installed, or on PYTHONPATH?"
        ) from error
    except Exception as error:  # whatever a module that is not ours may raise while it is imported
        raise UsageError(
            f"--strategy: importing {module_name!r} for {name!r} failed: {_described(error)}; mend it there"
        ) from error


def _described(error: Exception) -> str:
    """Give type, message and place of an error in somebody else's code."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


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

    A default of None is what the strategy has made of it, the object's attribute of that name; without any it is left
    out.
    """
    strategy = load_strategy(name, args)
    parameters = strategy_parameters(type(strategy)).items()
    defaults = {key: parameter.default for key, parameter in parameters if parameter.default is not parameter.empty}
    values = defaults | _checked_args(type(strategy), name, args)
    made = {key: getattr(strategy, key, None) if value is None else value for key, value in values.items()}
    return {key: value for key, value in made.items() if value is not None}


def strategy_parameters(strategy_class: type) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments of a strategy that text can set: those annotated with scalars.

    Raises:
        UsageError: An annotation names something that is not there.
    """
    constructor = inspect.getattr_static(strategy_class, "__init__")
    if constructor is object.__init__:
        return {}
    try:
        hints = typing.get_type_hints(constructor)
    except NameError as error:
        raise UsageError(
            f"--strategy: the annotations of {strategy_class.__qualname__}.__init__ cannot be read: {error}; import "
            "what they name"
        ) from error
    parameters = {}
    for name, parameter in inspect.signature(strategy_class).parameters.items():
        annotation = hints.get(name)
        if annotation is not None and _scalar_types(annotation):
            parameters[name] = parameter.replace(annotation=annotation)
    return parameters


def _checked_args(strategy_class: type, name: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    parameters = strategy_parameters(strategy_class)
    checked: dict[str, Scalar] = {}
    for key, value in args.items():
        if key not in parameters:
            advice = did_you_mean(key, parameters) if parameters else "it takes none"
            raise UsageError(f"--strategy-args: strategy {name!r} has no argument {key!r}; {advice}")
        checked[key] = _converted(name, key, value, parameters[key].annotation)
    return checked


_WANTED = {int: "a whole number", float: "a finite number", bool: "true or false"}


def _converted(name: str, key: str, value: Scalar, annotation: Any) -> Scalar:
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    if choices:
        if value in choices:
            return value
        raise UsageError(
            f"--strategy-args: {key} of strategy {name!r}: expected {' or '.join(map(str, choices))}, got {value!r}"
        )
    accepted = _scalar_types(annotation)
    if type(value) in accepted:
        return value
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if str in accepted:
        return str(value)
    wanted = " or ".join(_WANTED[kind] for kind in accepted)
    raise UsageError(f"--strategy-args: {key} of strategy {name!r}: expected {wanted}, got {value!r}")


def _scalar_types(annotation: Any) -> tuple[type, ...]:
    """Return the scalar types of an annotation, none if text cannot give its value."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return tuple({type(choice) for choice in typing.get_args(annotation)})
    options = typing.get_args(annotation) if origin in (types.UnionType, typing.Union) else (annotation,)
    kinds = tuple(option for option in options if option is not type(None))
    return kinds if all(kind in (str, int, float, bool) for kind in kinds) else ()
