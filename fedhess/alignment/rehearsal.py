"""A round without clients. It shows, before any run, what a strategy asks of clients and whether the run allows it."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from torch import Tensor, nn

from fedhess.alignment.loading import find_method, load_strategy
from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError
from fedhess.base.users_code import users_code
from fedhess.models.headed import HeadedModel
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

STEPPING = (FedAdagrad, FedAdam, FedAvgM, FedYogi)  # Flower's strategies with a server optimizer


def check_training(configs: Sequence[RunConfig]) -> None:
    """Check that the strategies' local training is compatible with privacy and robust means, if a run has them.

    Raises:
        UsageError: Local training of a strategy is not compatible: see `check_mean_update` and `check_relay`. Or a
            plain Flower strategy would step along the running statistics of batch norms.
        StrategyError: A strategy's server half raised on statistics that are zero.
    """
    for config in configs:
        robust, method = config.update_mean != "mean", find_method(config.strategy)
        if config.batchnorm == "averaged" and method.is_flower and issubclass(method.cls, STEPPING):
            raise UsageError(
                f"--batchnorm averaged: strategy {config.strategy} takes an optimizer's step in running variances too, "
                "below zero at times; give --batchnorm frozen, or --strategy erm with --server-optimizer"
            )
        if not (config.is_private or robust) or method.is_flower:
            continue
        strategy = load_strategy(config.strategy, config.strategy_args)
        assert isinstance(strategy, DomainStrategy)
        names = config.strategy, config.sources
        _, reference = rehearse_references(strategy, *names, private=config.is_private)
        try:
            with users_code(f"strategy {config.strategy!r}", "local_training", type(strategy).local_training):
                strategy.local_training(_Training(config), reference)
        except _IsAllowedError:
            pass


def check_mean_update(config: RunConfig, *, weighs: bool, sees: bool, held_out: bool) -> None:
    """Check that a strategy may train all clients at once in the way that it asks for.

    Raises:
        UsageError: The mean is robust, which counts every client once, and the strategy weighs the domains or sees
            each update; or the run is private, and the strategy asks for evaluations.
    """
    if config.is_private and held_out:
        raise UsageError(
            f"--strategy {config.strategy}: its clients evaluate what they trained, and a private run's sources send "
            "no loss and no accuracy; leave --dp-epsilon out, or choose another strategy"
        )
    if weighs or sees:
        reason = "it makes something of each update" if sees else "it weighs the domains"
        _require_mean(config, f"{reason} by itself, and robust means count every client once")


def check_relay(config: RunConfig) -> None:
    """Check that the domains may train one after the other.

    Raises:
        UsageError: The mean over clients is robust, but a relay takes no mean over the domains. Or the run is private,
            and momentum is passed from client to client, or clients answer once for each of several domains.
    """
    _require_mean(config, "it trains one domain after the other, and each leaves the model where it likes")
    if config.is_private and config.momentum:
        raise UsageError(
            f"--momentum {config.momentum:g}: strategy {config.strategy} carries it from client to client, which "
            "--dp-epsilon does not cover; give --momentum 0"
        )
    if config.is_private and config.partition == "lambda":
        raise UsageError(
            f"--partition lambda: strategy {config.strategy} has a client send an update for each domain that it "
            "holds, and --dp-epsilon has noise for one a round; give --partition domain or dirichlet"
        )


def _require_mean(config: RunConfig, reason: str) -> None:
    if config.update_mean != "mean":
        raise UsageError(
            f"--update-mean {config.update_mean}: strategy {config.strategy} cannot have it, since {reason}; give "
            "--update-mean mean"
        )


def rehearse_references(
    strategy: DomainStrategy, name: str, domains: Sequence[str], *, private: bool
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Have a new strategy object, which may store the answers, make the references of round 1 from zeros.

    Returns:
        The statistics that it asked for, in order, and the references.

    Raises:
        StrategyError: The strategy raised.
        UsageError: The strategy asks for evaluations, which a private run does not have.
    """
    ask = _Ask(strategy, name, domains, private=private)
    with users_code(f"strategy {name!r}", "reference", type(strategy).reference):
        reference = strategy.reference(ask)
    return tuple(ask.asked), reference


def _template() -> HeadedModel:
    return HeadedModel(nn.Linear(2, 2), nn.Linear(2, 2))


class _Ask:
    """An ``ask`` that answers zeros."""

    seed = 0
    server_round = 1

    def __init__(self, strategy: DomainStrategy, name: str, domains: Sequence[str], *, private: bool) -> None:
        self.domains, self._private = domains, private
        self.asked: list[str] = []
        statistics, network = strategy.statistics, strategy.network_statistics.keys()
        self._shapes = StatisticShapes(statistics, _template(), network, strategy=name)

    def __call__(self, name: str, **given: Tensor | Scalar) -> PerDomain:
        return self.several(name, **given)[name]

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        self.asked += names
        return self._zeros(
            {name: blank.new_zeros(blank.shape) for name, blank in self._shapes.of(names, given).items()}
        )

    def held_out(self) -> dict[str, PerDomain]:
        if self._private:
            raise UsageError("a private run's sources send no loss and no accuracy, which this strategy asks for")
        return self._zeros(dict.fromkeys(("loss", "accuracy"), torch.zeros((), dtype=torch.float64)))

    def _zeros(self, values: Mapping[str, Tensor]) -> dict[str, PerDomain]:
        equal = dict.fromkeys(self.domains, 1)
        return {name: PerDomain(dict.fromkeys(self.domains, zero), equal, equal) for name, zero in values.items()}


class _IsAllowedError(UsageError):
    """Ends the rehearsal: the training that the strategy asks for is allowed."""


class _Training:
    """A ``LocalTraining`` that ends with the first request."""

    server_round = 1

    def __init__(self, config: RunConfig) -> None:
        self.config, self.domains = config, list(config.sources)
        self.shares = dict.fromkeys(self.domains, 1 / len(self.domains))
        self.model = self
        self.tensors = _template().state_dict()
        self.trained_names = self.update_names = list(self.tensors)

    def mean_update(
        self, domain_weights: object = None, *, given: object = None, each: object = None, held_out: bool = False
    ) -> NoReturn:
        del given
        check_mean_update(self.config, weighs=domain_weights is not None, sees=each is not None, held_out=held_out)
        raise _IsAllowedError

    def train_domain(self, *_: object, **__: object) -> NoReturn:
        check_relay(self.config)
        raise _IsAllowedError
