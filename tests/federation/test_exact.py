"""Promise 1: a federated round equals a step of the centralised algorithm, on every parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from centralised import (
    Objective,
    afl_objective,
    coral_objective,
    erm_objective,
    fediir_objective,
    fishr_objective,
    groupdro_objective,
    hgp_objective,
    hutchinson_objective,
    iga_objective,
    irm_objective,
    server_alignment_objective,
    train_centrally,
    train_fish,
    vrex_objective,
)
from torch import Tensor
from toy import toy_config, toy_domains

from fedhess.local_data import build_model

ROUNDS = 20
# Penalties strong enough to matter: without one, parameters would differ in the third digit.
ALPHA, BETA = 0.02, 0.05
METHODS: dict[str, tuple[str, dict[str, Any], Callable[[], Objective]]] = {
    "erm": ("erm", {}, erm_objective),
    "fedprox": ("fedprox", {"mu": 3.0}, erm_objective),  # one local step: the proximal term has no gradient
    "hgp_of_mean": (
        "hgp",
        {"alpha": ALPHA, "beta": BETA, "form": "hgp_of_mean"},
        lambda: hgp_objective(ALPHA, BETA, "hgp_of_mean"),
    ),
    "mean_of_hgp": (
        "hgp",
        {"alpha": ALPHA, "beta": BETA, "form": "mean_of_hgp"},
        lambda: hgp_objective(ALPHA, BETA, "mean_of_hgp"),
    ),
    "hutchinson": ("hutchinson", {"alpha": ALPHA, "beta": BETA}, lambda: hutchinson_objective(ALPHA, BETA)),
    "irm-halves": ("irm", {"weight": 2.0, "anneal_steps": 0}, lambda: irm_objective(2.0, "halves")),
    "irm-squared": (
        "irm",
        {"weight": 0.5, "anneal_steps": 0, "form": "squared"},
        lambda: irm_objective(0.5, "squared"),
    ),
    "vrex": ("vrex", {"weight": 0.5, "anneal_steps": 0}, lambda: vrex_objective(0.5)),
    "coral": ("coral", {"gamma": 1.0}, lambda: coral_objective(1.0)),
    "iga": ("iga", {"coefficient": 0.02, "form": "mean"}, lambda: iga_objective(0.02, form="mean")),
    "iga-sum": ("iga", {"coefficient": 0.01}, lambda: iga_objective(0.01, form="sum")),
    "fishr": ("fishr", {"weight": 20.0, "anneal_steps": 0, "ema": 0.7}, lambda: fishr_objective(20.0, 0.7)),
    "fediir": ("fediir", {"gamma": 0.05, "ema": 0.8}, lambda: fediir_objective(0.05, 0.8)),
    "groupdro": ("groupdro", {"eta": 0.3}, lambda: groupdro_objective(0.3)),
    "afl": ("groupdro", {"eta": 0.3, "form": "projection"}, lambda: afl_objective(0.3)),
}
FEW_CLASSES = ("hutchinson", "fishr")  # oracles that differentiate one parameter, or one example, at a time
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
    domains = toy_domains(classes=classes)
    model = build_model(config)
    lr = settings["lr"] if optimizer == "SGD" else settings["server_lr"]
    stepper = getattr(torch.optim, optimizer)(model.parameters(), lr=lr)
    return train_centrally(model, domains, config=config, objective=objective(), optimizer=stepper)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_federated_equals_centralised_after_20_rounds(toy_run: Callable[..., Any], method: str, optimizer: str) -> None:
    name, args, _ = METHODS[method]
    classes = 2 if method in FEW_CLASSES else 4
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


def test_server_alignment_steps_along_the_variance_of_head_gradients(toy_run: Callable[..., Any]) -> None:
    settings = OPTIMIZERS["SGD"]
    federated = toy_run(rounds=ROUNDS, strategy="server_alignment", strategy_args={"step": 0.02}, **settings).tensors
    config = toy_config(rounds=ROUNDS, **settings)
    model = build_model(config)
    expected = train_centrally(
        model,
        toy_domains(classes=4),
        config=config,
        objective=server_alignment_objective(0.02, settings["lr"]),
        optimizer=torch.optim.SGD(model.parameters(), lr=settings["lr"]),
    )
    for key, value in expected.items():
        torch.testing.assert_close(federated[key], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fish_equals_its_own_loop(toy_run: Callable[..., Any], momentum: float) -> None:
    settings = {"rounds": ROUNDS, "lr": 0.05, "momentum": momentum}
    federated = toy_run(strategy="fish", strategy_args={"eps": 0.5}, **settings).tensors
    config = toy_config(**settings)
    expected = train_fish(build_model(config), toy_domains(classes=4), config=config, eps=0.5)
    for key, value in expected.items():
        torch.testing.assert_close(federated[key], value, rtol=0, atol=1e-10)


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
