"""Turn the text of ``--strategy`` and ``--strategy-args`` into a strategy object."""

import inspect
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.serverapp.strategy import FedProx, Strategy
from torch import Tensor, nn

from fedhess.alignment.combination import combine, strategy_parameters
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.loading import checked_arguments, find_object, installed, is_here
from fedhess.base.seeds import seeded_globally
from fedhess.base.users_code import users_code
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel
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
    """Return every named strategy as ``module:Class``: installed entry points, overridden by the built-in ones."""
    return {**installed(ENTRY_POINT_GROUP), **BUILT_IN}


@dataclass(frozen=True)
class Method:
    """A strategy, found by its name.

    Attributes:
        name: What the run calls it.
        cls: Its class: a :class:`DomainStrategy`, or a plain Flower ``Strategy`` (whose clients then train ERM).
        parameters: The arguments of its constructor that text can set: those annotated with scalars.
    """

    name: str
    cls: Any
    parameters: Mapping[str, inspect.Parameter]

    @property
    def is_flower(self) -> bool:
        """Whether it is a plain Flower strategy, which ignores the run's server optimizer and weighting."""
        return not issubclass(self.cls, DomainStrategy)

    @property
    def statistics(self) -> dict[str, Callable[..., Tensor]]:
        """The statistics that its clients may be asked for, by name; none for a plain Flower strategy."""
        return {} if self.is_flower else {**self.cls.statistics, **self.cls.network_statistics}

    def check_args(self, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Check arguments against the constructor's annotations."""
        return checked_arguments(
            self.parameters, args, option="--strategy-args", what=f"strategy {self.name!r}", of=self.cls
        )

    def build(self, args: Mapping[str, Scalar]) -> DomainStrategy | Strategy:
        """Build it; see :func:`load_strategy`."""
        checked = self.check_args(args)
        with users_code(f"strategy {self.name!r}", "constructor", self.cls):
            try:
                built: DomainStrategy | Strategy = self.cls(**checked)
                return built
            except (ValueError, TypeError) as error:
                raise UsageError(f"--strategy-args: strategy {self.name!r} rejects its arguments: {error}") from error


def load_strategy(name: str, args: Mapping[str, Scalar]) -> DomainStrategy | Strategy:
    """Build a strategy.

    Args:
        name: See :func:`find_method`.
        args: Arguments of its constructor, checked against the constructor's annotations.

    Raises:
        UsageError: As :func:`find_method`; or an argument is unknown, missing, of the wrong type or rejected by the
            constructor.
    """
    return find_method(name).build(args)


def is_installed(name: str) -> bool:
    """Whether a strategy can be found on this machine; it may be on others."""
    paths = (part if ":" in part else known_strategies().get(part, "") for part in name.split(PLUS))
    return all(map(is_here, paths))


def find_method(name: str) -> Method:
    """Find a strategy.

    Args:
        name: A built-in name, an entry point of group ``fedhess.strategies``, or ``package.module:Class``; or several,
            joined by a plus sign.

    Raises:
        UsageError: The name is unknown, cannot be imported or is no strategy.
    """
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
        combined = combine(name, {prefix: find_method(part).cls for prefix, part in parts.items()})
        return Method(name, combined, {parameter.name: parameter for parameter in combined.parameters})
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
    if issubclass(found, DomainStrategy):
        for kind in ("statistics", "network_statistics"):
            if not isinstance(listed := getattr(found, kind), Mapping):
                raise UsageError(f"--strategy: {path}: expected {kind} as functions by name, got {listed!r}")
    if issubclass(found, FedProx):
        raise UsageError(
            f"--strategy: {path} is the server half of FedProx: its clients would have to add its proximal term to "
            "their loss; use --strategy fedprox"
        )
    return Method(name, found, strategy_parameters(found))  # type: ignore[arg-type]  # to mypy no type is hashable


def client_half(config: RunConfig) -> DomainStrategy:
    """Build the client half of the run's strategy; under a plain Flower strategy clients train ERM.

    Each message gets a new object, in every engine. What an object stores would be lost with the message's process on a
    SuperNode, and visible to other clients in one shared process.
    """
    method = find_method(config.strategy)
    return DomainStrategy() if method.is_flower else typing.cast(DomainStrategy, method.build(config.strategy_args))


def strategy_model(config: RunConfig, *, initial: bool = True) -> HeadedModel:
    """Build the run's model with the auxiliary modules of its strategy; see `build_model`."""
    model, strategy = build_model(config, initial=initial), client_half(config)
    with (
        seeded_globally(config.seed, "auxiliary"),  # layers draw initial values when a process first needs the model
        users_code(f"strategy {config.strategy!r}", "auxiliary", type(strategy)),
    ):
        auxiliary = strategy.auxiliary(model)
        if not isinstance(auxiliary, nn.Module | None):
            raise TypeError(f"expected a torch module or None, got {type(auxiliary).__name__}")
    if auxiliary is not None:
        model.auxiliary = auxiliary.to(device=torch.device(config.device_here), dtype=config.torch_dtype)
    return model


def resolved_args(name: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a strategy's arguments, defaults included.

    A default of None is replaced by the object's attribute of that name; if there is none, the argument is left out.
    """
    method, strategy = find_method(name), load_strategy(name, args)
    defaults = {key: p.default for key, p in method.parameters.items() if p.default is not p.empty}
    values = defaults | method.check_args(args)
    made = {key: getattr(strategy, key, None) if value is None else value for key, value in values.items()}
    return {key: value for key, value in made.items() if value is not None}
