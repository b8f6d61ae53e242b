"""What a strategy has its clients do is known before they do it, and refused then."""

from collections.abc import Mapping
from typing import Any

import pytest
from toy import toy_config

from fedhess.alignment import DomainStrategy, LocalTraining, Reference
from fedhess.alignment.loading import BUILT_IN, client_half
from fedhess.alignment.rehearsal import check_training
from fedhess.base.errors import StrategyError, UsageError

PRIVATE = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_clip": {"update": 0.1, "statistics": 1.0}}
ROBUST = {"update_mean": "median"}
AVERAGED = {"batchnorm": "averaged"}
EVALUATES = "its clients evaluate what they trained, and a private run's sources send no loss"
REFUSED: dict[tuple[str, str], str] = {
    ("ga", "private"): f"--strategy ga: {EVALUATES}",
    ("hgp+ga", "private"): rf"--strategy hgp\+ga: {EVALUATES}",
    ("fish", "private"): "--momentum 0.9: strategy fish carries it from client to client",
    ("groupdro", "robust"): "strategy groupdro cannot have it, since it weighs the domains by itself",
    ("fish", "robust"): "strategy fish cannot have it, since it trains one domain after the other",
    **{
        (name, "robust"): f"--update-mean median: strategy {name.replace('+', '.')} cannot have it, since it makes "
        "something of each update by itself"
        for name in ("ga", "hgp+ga", "fedgma", "fedomg", "scaffold")
    },
}


class Careless(DomainStrategy):
    """Divides by what is zero in a rehearsal."""

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Any]:
        return phase.mean_update({"north": 1 / 0})


@pytest.mark.parametrize(("kind", "changes"), [("private", PRIVATE | {"momentum": 0.9}), ("robust", ROBUST)])
def test_what_goes_with_neither_privacy_nor_robust_means_is_refused_before_anything_runs(
    kind: str, changes: Mapping[str, Any]
) -> None:
    for name in (*BUILT_IN, "hgp+ga"):
        config = toy_config(strategy=name, **changes)
        if (name, kind) in REFUSED:
            with pytest.raises(UsageError, match=REFUSED[name, kind]):
                check_training([config])
        else:
            check_training([config])
        check_training([toy_config(strategy=name)])
    check_training([toy_config(strategy="ga", strategy_args={"s": 0}, **changes)])


@pytest.mark.parametrize("name", ["fedadam", "flwr.serverapp.strategy:FedAvgM"])
def test_flowers_server_optimizers_do_not_step_along_running_statistics(name: str) -> None:
    with pytest.raises(UsageError, match=r"--batchnorm averaged: strategy .* step in running variances too"):
        check_training([toy_config(strategy=name, batchnorm="averaged")])
    check_training([toy_config(strategy=name), toy_config(strategy="flwr.serverapp.strategy:FedAvg", **AVERAGED)])


@pytest.mark.parametrize(("name", "off"), [("mixstyle", {"p": 0.0}), ("iga", {"coefficient": 0.0})])
def test_what_a_compiled_network_would_not_do_is_refused(name: str, off: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--compile: not with strategy {name}"):
        client_half(toy_config(strategy=name)).check(toy_config(strategy=name, compile=True))
    client_half(toy_config(strategy=name, strategy_args=off)).check(toy_config(strategy=name, compile=True))


def test_a_private_relay_has_noise_for_one_update_of_each_client() -> None:
    mixed = {"partition": "lambda", "clients": 3, "heterogeneity": 0.5}
    with pytest.raises(UsageError, match=r"--partition lambda: strategy fish has a client send an update for each"):
        check_training([toy_config(strategy="fish", **PRIVATE, **mixed)])
    divided = {"partition": "dirichlet", "clients_per_domain": 2, "dirichlet_min_size": 2}
    check_training([toy_config(strategy="fish", **PRIVATE, **divided), toy_config(strategy="fish", **mixed)])


def test_an_error_in_a_strategys_own_code_is_its_own() -> None:
    with pytest.raises(StrategyError, match=r"Careless', local_training: ZeroDivisionError"):
        check_training([toy_config(strategy=f"{__name__}:Careless", **ROBUST)])
