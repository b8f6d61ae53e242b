"""Promise 1: a federated round equals a step of the centralised algorithm, on every parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from centralised import Objective, erm_objective, hgp_objective, hutchinson_objective, train_centrally
from torch import Tensor
from toy import SOURCES, toy_config

from fedhess.domains import open_benchmark
from fedhess.local_data import build_model

ROUNDS = 20
# Penalties strong enough to matter: without one, parameters would differ in the third digit.
ALPHA, BETA = 0.02, 0.05
METHODS: dict[str, tuple[str, dict[str, Any], Objective]] = {
    "erm": ("erm", {}, erm_objective()),
    "hgp_of_mean": (
        "hgp",
        {"alpha": ALPHA, "beta": BETA, "form": "hgp_of_mean"},
        hgp_objective(ALPHA, BETA, "hgp_of_mean"),
    ),
    "mean_of_hgp": (
        "hgp",
        {"alpha": ALPHA, "beta": BETA, "form": "mean_of_hgp"},
        hgp_objective(ALPHA, BETA, "mean_of_hgp"),
    ),
    "hutchinson": ("hutchinson", {"alpha": ALPHA, "beta": BETA}, hutchinson_objective(ALPHA, BETA)),
}
OPTIMIZERS = {
    "SGD": {"server_optimizer": "SGD", "server_lr": 1.0, "lr": 0.05},
    "Adam": {"server_optimizer": "Adam", "server_lr": 1e-3, "lr": 1.0},
}


def centralised(method: str, optimizer: str, classes: int) -> dict[str, Tensor]:
    name, args, objective = METHODS[method]
    settings = OPTIMIZERS[optimizer]
    config = toy_config(
        rounds=ROUNDS, strategy=name, strategy_args=args, domains_options={"classes": classes}, **settings
    )
    benchmark = open_benchmark("Toy", options={"classes": classes})
    domains = {}
    for domain in SOURCES:
        data = benchmark.load(domain)
        domains[domain] = (data.inputs(torch.arange(len(data))).double(), data.labels)
    model = build_model(config)
    lr = settings["lr"] if optimizer == "SGD" else settings["server_lr"]
    stepper = getattr(torch.optim, optimizer)(model.parameters(), lr=lr)
    return train_centrally(model, domains, config=config, objective=objective, optimizer=stepper)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_federated_equals_centralised_after_20_rounds(toy_run: Callable[..., Any], method: str, optimizer: str) -> None:
    name, args, _ = METHODS[method]
    classes = 2 if method == "hutchinson" else 4  # the oracle takes one double backward a head parameter
    federated = toy_run(
        rounds=ROUNDS,
        strategy=name,
        strategy_args=args,
        domains_options={"classes": classes},
        **OPTIMIZERS[optimizer],
    ).tensors
    expected = centralised(method, optimizer, classes)
    assert federated.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            federated[key], value, rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_the_two_reference_forms_are_different_algorithms(toy_run: Callable[..., Any]) -> None:
    ends = [
        toy_run(strategy="hgp", strategy_args={"alpha": ALPHA, "form": form}).tensors["head.weight"]
        for form in ("hgp_of_mean", "mean_of_hgp")
    ]
    assert (ends[0] - ends[1]).abs().max() > 1e-6


def test_a_logistic_head_is_exact_too(toy_run: Callable[..., Any]) -> None:
    changes = {"strategy": "hgp", "strategy_args": {"alpha": ALPHA, "beta": BETA}, **OPTIMIZERS["Adam"]}
    federated = toy_run(rounds=ROUNDS, domains_options={"classes": 1}, **changes).tensors
    expected = centralised("hgp_of_mean", "Adam", 1)
    for key, value in expected.items():
        torch.testing.assert_close(federated[key], value, rtol=0, atol=1e-10)
