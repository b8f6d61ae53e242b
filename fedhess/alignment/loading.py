"""Turn the text of ``--strategy`` and ``--strategy-args`` into a strategy object."""

import inspect
import itertools
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from flwr.serverapp.strategy import FedProx, Strategy

from fedhess.alignment.combination import Combined, combine
from fedhess.alignment.strategy import DomainStrategy
from fedhess.alignment.strategy_code import strategy_code
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.loading import checked_arguments, find_object, installed, is_here, text_parameters
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import build_model
from fedhess.settings.assignments import Scalar
from fedhess.settings.combined import PLUS, parts_of
from fedhess.settings.run_config import RunConfig

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
    "cma": "fedhess.strategies.cma:CMA",
    "rsc": "fedhess.strategies.rsc:RSC",
    "mixup": "fedhess.strategies.mixup:Mixup",
    "mixstyle": "fedhess.strategies.mixstyle:MixStyle",
    "fedgma": "fedhess.strategies.fedgma:FedGMA",
    "fedomg": "fedhess.strategies.fedomg:FedOMG",
    "scaffold": "fedhess.strategies.scaffold:Scaffold",
    "ga": "fedhess.strategies.ga:GA",
    "fedsam": "fedhess.strategies.fedsam:FedSAM",
    "sagm": "fedhess.strategies.sagm:SAGM",
    "fedsr": "fedhess.strategies.fedsr:FedSR",
    "fedprox": "fedhess.strategies.fedprox:FedProx",
    "fedadam": "fedhess.strategies.fedadam:FedAdam",
}


def known_strategies() -> dict[str, str]:
    """Return every strategy that has a name: the built-in ones, then installed entry points, as ``module:Class``."""
    return {**installed(ENTRY_POINT_GROUP), **BUILT_IN}


def load_strategy(name: str, args: Mapping[str, Scalar]) -> DomainStrategy | Strategy:
    """Build a strategy.

    Args:
        name: A built-in name, an entry point of group ``fedhess.strategies``, or ``package.module:Class``; or several,
            joined by a plus sign.
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
    paths = (part if ":" in part else known_strategies().get(part, "") for part in name.split(PLUS))
    return all(map(is_here, paths))


def load_class(name: str) -> type[DomainStrategy] | type[Strategy]:
    """Find the class of a strategy; see :func:`load_strategy`."""
    if PLUS in name:
        parts = parts_of(name)
        if len(parts) <= name.count(PLUS):
            raise UsageError(f"--strategy {name}: two of its parts have the same name; name each strategy once")
        clash = next(((a, b) for a, b in itertools.permutations(parts, 2) if b.startswith(a)), None)
        if clash is not None:
            raise UsageError(
                f"--strategy {name}: arguments of {parts[clash[1]]!r}, {clash[1]}..., could be those of "
                f"{parts[clash[0]]!r}, {clash[0]}...; give one of the two another name"
            )
        return combine(name, {prefix: load_class(part) for prefix, part in parts.items()})
    known = known_strategies()
    path = name if ":" in name else known.get(name)
    if path is None:
        raise UsageError(f"--strategy: unknown strategy {name!r}; {did_you_mean(name, known)}, or package.module:Class")
    found: Any = find_object(path, name=name, kind="strategy")
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


def strategy_model(config: RunConfig, *, initial: bool = True) -> HeadedModel:
    """Build the run's model with what its strategy trains beside it; see `build_model`."""
    model = build_model(config, initial=initial)
    auxiliary = client_half(config).auxiliary(model)
    if auxiliary is not None:
        model.auxiliary = auxiliary.to(device=torch.device(config.device_here), dtype=config.torch_dtype)
    return model


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
    if issubclass(strategy_class, Combined):
        return {parameter.name: parameter for parameter in strategy_class.parameters}
    return text_parameters(strategy_class, what=f"strategy {strategy_class.__qualname__!r}")


def _checked_args(strategy_class: type, name: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    parameters = strategy_parameters(strategy_class)
    return checked_arguments(parameters, args, option="--strategy-args", what=f"strategy {name!r}")
