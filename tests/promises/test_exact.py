"""Promise 1: a federated round equals a step of the centralised algorithm, on every parameter."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from centralised import (
    Objective,
    Pulls,
    adversarial_objective,
    afl_move,
    cma_pulls,
    coral_objective,
    erm_objective,
    fediir_objective,
    fedprox_pulls,
    fishr_objective,
    groupdro_move,
    hgp_pulls,
    hutchinson_pulls,
    iga_objective,
    iga_pulls,
    irm_objective,
    pulled,
    rsc_objective,
    server_alignment_objective,
    train_centrally,
    uncorrected,
    vrex_objective,
)
from centralised_fedsr import fedsr_objective
from centralised_rounds import (
    masked,
    matched,
    sagm_slope,
    sam_slope,
    train_adjusted,
    train_fish,
    train_in_rounds,
    train_scaffold,
)
from crossing import crossed
from torch import Tensor
from toy import FIVE, toy_config, toy_domains

from fedhess.alignment.loading import strategy_model
from fedhess.models import MODELS
from fedhess.models.building import build_model
from fedhess.settings.run_config import RunConfig

Run = Callable[..., Any]
ROUNDS, QUICK_ROUNDS = 20, 8
# Penalties strong enough to matter: the tests see that ERM ends elsewhere.
ALPHA, BETA = 2.0, 0.5
HGP: dict[str, Any] = {"alpha": ALPHA, "beta": BETA, "scale": "absolute"}
RELATIVE = HGP | {"scale": "relative"}
CMA: dict[str, Any] = {"a": 0.5, "b": 50.0, "scale": "absolute"}
NOW = {"anneal_steps": 0}
LR = 0.05
# By name: strategy, its arguments, and what it does given the names of the source domains and the length of a step.
METHODS: dict[str, tuple[str, dict[str, Any], Callable[[tuple[str, ...], float], Objective]]] = {
    "erm": ("erm", {}, lambda *_: erm_objective()),
    "hgp_of_mean": ("hgp", HGP, lambda *_: pulled(hgp_pulls(ALPHA, BETA))),
    "mean_of_hgp": ("hgp", HGP | {"form": "mean_of_hgp"}, lambda *_: pulled(hgp_pulls(ALPHA, BETA, "mean_of_hgp"))),
    "hgp-relative": ("hgp", RELATIVE, lambda *_: pulled(hgp_pulls(ALPHA, BETA, relative=True))),
    "hutchinson-relative": ("hutchinson", RELATIVE, lambda *_: pulled(hutchinson_pulls(ALPHA, BETA, relative=True))),
    "hgp-uncorrected": (
        "hgp",
        RELATIVE | {"estimate": "batch"},
        lambda *_: pulled(uncorrected(hgp_pulls(ALPHA, BETA, relative=True))),
    ),
    "hutchinson-probes-relative": (
        "hutchinson",
        RELATIVE | {"probes": 3},
        lambda *_: pulled(hutchinson_pulls(ALPHA, BETA, probes=3, relative=True)),
    ),
    "hutchinson": ("hutchinson", HGP, lambda *_: pulled(hutchinson_pulls(ALPHA, BETA))),
    "hutchinson-probes": (
        "hutchinson",
        HGP | {"probes": 3},
        lambda *_: pulled(hutchinson_pulls(ALPHA, BETA, probes=3)),
    ),
    "irm-halves": ("irm", {"weight": 2.0} | NOW, lambda *_: irm_objective(2.0, "halves")),
    "irm-squared": ("irm", {"weight": 0.5, "form": "squared"} | NOW, lambda *_: irm_objective(0.5, "squared")),
    "vrex": ("vrex", {"weight": 0.5} | NOW, lambda *_: vrex_objective(0.5)),
    "coral": ("coral", {"gamma": 1.0}, lambda *_: coral_objective(1.0)),
    "iga": ("iga", {"coefficient": 0.02, "form": "mean"}, lambda *_: iga_objective(0.02, form="mean")),
    "iga-sum": ("iga", {"coefficient": 0.01}, lambda *_: iga_objective(0.01, form="sum")),
    "fishr": ("fishr", {"weight": 20.0, "ema": 0.7} | NOW, lambda *_: fishr_objective(20.0, 0.7)),
    "fediir": ("fediir", {"gamma": 0.5, "ema": 0.8}, lambda *_: fediir_objective(0.5, 0.8)),
    "cma-full": ("cma", CMA | {"form": "full"}, lambda *_: pulled(cma_pulls(0.5, 50.0, "full"))),
    "cma-blocks": ("cma", CMA | {"form": "blocks"}, lambda *_: pulled(cma_pulls(0.5, 50.0, "blocks"))),
    "cma-sketch": ("cma", CMA | {"probes": 5}, lambda *_: pulled(cma_pulls(0.5, 50.0, "sketch", probes=5))),
    "rsc": ("rsc", {"f": 0.4, "b": 0.4}, lambda *_: rsc_objective(0.4, 0.4)),
    "fedsr": ("fedsr", {"l2r": 0.1, "cmi": 0.05}, lambda *_: fedsr_objective(0.1, 0.05)),
    "cma-relative": (
        "cma",
        {"a": 0.5, "b": 0.3, "form": "blocks"},
        lambda *_: pulled(cma_pulls(0.5, 0.3, "blocks", relative=True)),
    ),
    "server_alignment": ("server_alignment", {"step": 0.02}, lambda _, lr: server_alignment_objective(0.02, lr)),
    "groupdro": ("groupdro", {"eta": 0.3}, lambda names, _: adversarial_objective(names, groupdro_move(0.3))),
    "afl": (
        "groupdro",
        {"eta": 0.3, "form": "projection"},
        lambda names, _: adversarial_objective(names, afl_move(0.3)),
    ),
}


def arranged(domains: int, weighting: str, **changes: Any) -> dict[str, Any]:
    """Settings of a run with so many domains, each of another size, on a model of 6 features."""
    options = {"six": True, "uneven": True, "classes": changes.pop("classes", 4)}
    settings = {"sources": FIVE[:domains], "domains_options": options, "model": "small"}
    return settings | {"weighting": weighting, "rounds": ROUNDS, "evaluate_every": ROUNDS} | changes


SGD = {"server_optimizer": "SGD", "server_lr": 1.0, "lr": LR}
ADAM = {"server_optimizer": "Adam", "server_lr": 1e-3, "lr": 1.0}
# Each method once with three, four and five domains, either weighting, either optimizer, an L2 term, one logit and
# drawn clients.
ARRANGEMENTS = {
    "three": arranged(3, "examples", **SGD, l2=0.01),
    "four": arranged(4, "domain", **ADAM),
    "two of five": arranged(5, "domain", **ADAM, clients_per_round=2, l2=0.01, classes=1),
}


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "small", "toy:create_small")


def domains_of(config: RunConfig) -> dict[str, tuple[Tensor, Tensor]]:
    return toy_domains(config.sources, **config.domains_options)


@cache
def centralised(method: str, arrangement: str, rounds: int) -> dict[str, Tensor]:
    """Where the centralised algorithm ends."""
    name, args, objective_of = METHODS[method]
    config = toy_config(strategy=name, strategy_args=args, **ARRANGEMENTS[arrangement] | {"rounds": rounds})
    model, objective = strategy_model(config), objective_of(config.sources, config.lr)
    optimizer = getattr(torch.optim, config.server_optimizer)(model.parameters(), lr=config.lr * config.server_lr)
    return train_centrally(model, domains_of(config), config=config, objective=objective, optimizer=optimizer)


def check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def gap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a.keys() & b.keys())


@pytest.mark.parametrize(
    ("method", "arrangement", "rounds"),
    [
        pytest.param(*pair.values, ROUNDS if pair.marks else QUICK_ROUNDS, marks=pair.marks)
        for pair in crossed(METHODS, ARRANGEMENTS)
    ],
)
def test_federated_equals_centralised(toy_run: Run, method: str, arrangement: str, rounds: int) -> None:
    name, args, _ = METHODS[method]
    settings = ARRANGEMENTS[arrangement] | {"rounds": rounds}
    expected = centralised(method, arrangement, rounds)
    check_same(toy_run(strategy=name, strategy_args=args, **settings).tensors, expected)
    assert method == "erm" or gap(expected, centralised("erm", arrangement, rounds)) > 1e-5


def test_the_two_reference_forms_are_different_algorithms() -> None:
    assert gap(*(centralised(form, "four", QUICK_ROUNDS) for form in ("hgp_of_mean", "mean_of_hgp"))) > 1e-6


SEVERAL_STEPS: dict[str, tuple[str, dict[str, Any], Callable[[], Pulls]]] = {
    "erm": ("erm", {}, lambda: lambda _: []),
    "fedprox": ("fedprox", {"mu": 3.0}, lambda: fedprox_pulls(3.0)),
    "hgp_of_mean": ("hgp", HGP, lambda: hgp_pulls(ALPHA, BETA)),
    "hgp-relative": ("hgp", RELATIVE, lambda: hgp_pulls(ALPHA, BETA, relative=True)),
    "hgp-alpha": ("hgp", HGP | {"beta": 0.0}, lambda: hgp_pulls(ALPHA, 0.0)),
    "hgp-beta": ("hgp", HGP | {"alpha": 0.0}, lambda: hgp_pulls(0.0, BETA)),
    "hutchinson-alpha": ("hutchinson", HGP | {"beta": 0.0}, lambda: hutchinson_pulls(ALPHA, 0.0)),
    "hutchinson-beta": ("hutchinson", RELATIVE | {"alpha": 0.0}, lambda: hutchinson_pulls(0.0, BETA, relative=True)),
    "iga-sum": ("iga", {"coefficient": 0.01}, lambda: iga_pulls(0.01)),
}
LOCAL = {"rounds": 2, "evaluate_every": 2, "server_optimizer": "Adam", "server_lr": 0.01, "weight_decay": 0.01}
LOCALLY = {
    "three": arranged(3, "domain", **LOCAL, local_steps=10, lr=LR, momentum=0.9),
    "four": arranged(4, "examples", **LOCAL, local_steps=10, lr=0.01, client_optimizer="Adam", l2=0.01),
    "five": arranged(5, "examples", **LOCAL, local_steps=3, lr=LR, momentum=0.9, classes=1, statistics_batches=2),
}


@pytest.mark.parametrize(("method", "arrangement"), crossed(SEVERAL_STEPS, LOCALLY))
def test_several_local_steps_are_a_plain_loop_towards_references_of_the_first(
    toy_run: Run, method: str, arrangement: str
) -> None:
    name, args, pulls = SEVERAL_STEPS[method]
    config = toy_config(**LOCALLY[arrangement])
    expected = train_in_rounds(build_model(config), domains_of(config), config=config, pulls=pulls())
    check_same(toy_run(strategy=name, strategy_args=args, **LOCALLY[arrangement]).tensors, expected)
    erm = train_in_rounds(build_model(config), domains_of(config), config=config, pulls=lambda _: [])
    assert method == "erm" or gap(erm, expected) > 1e-5


def test_a_weight_that_comes_within_a_round_divides_the_objective_from_its_step_on(toy_run: Run) -> None:
    settings = LOCALLY["three"]
    config = toy_config(**settings)
    pulls = hgp_pulls(ALPHA, BETA)
    expected = train_in_rounds(
        build_model(config),
        domains_of(config),
        config=config,
        pulls=pulls,
        weight=lambda step: 50.0 if step >= 14 else 1.0,
    )
    args = HGP | {"weight": 50.0, "anneal_steps": 14}
    check_same(toy_run(strategy="hgp", strategy_args=args, **settings).tensors, expected)


@pytest.mark.parametrize(("arrangement", "momentum"), [("three", 0.0), ("four", 0.9), ("two of five", 0.9)])
def test_fish_equals_its_own_loop(toy_run: Run, arrangement: str, momentum: float) -> None:
    settings = ARRANGEMENTS[arrangement] | SGD | {"momentum": momentum, "rounds": QUICK_ROUNDS}
    federated = toy_run(strategy="fish", strategy_args={"eps": 0.5}, **settings).tensors
    config = toy_config(**settings)
    check_same(federated, train_fish(build_model(config), domains_of(config), config=config, eps=0.5))


FOLLOWED: dict[str, tuple[dict[str, Any], Callable[..., dict[str, Tensor]]]] = {
    "fedgma": ({"tau": 0.5}, partial(train_in_rounds, merge=masked(0.5))),
    "fedomg": ({"k": 0.5}, partial(train_in_rounds, merge=matched(0.5))),
    "scaffold": ({}, train_scaffold),
    "ga": ({"s": 0.4}, partial(train_adjusted, s=0.4, measure="accuracy")),
    "ga-loss": ({"s": 0.4, "measure": "loss"}, partial(train_adjusted, s=0.4, measure="loss")),
    "fedsam": ({"rho": 0.1}, partial(train_in_rounds, slope=sam_slope(0.1))),
    "fedsam-asam": ({"form": "asam"}, partial(train_in_rounds, slope=sam_slope(0.7, 0.2))),
    "sagm": ({"rho": 0.05, "alpha": 0.001}, partial(train_in_rounds, slope=sagm_slope(0.05, 0.001))),
}
SCHEDULED = {"server_lr_schedule": "cosine", "server_warmup_rounds": 2}
UPDATED = {
    "three": arranged(3, "examples", rounds=4, local_steps=3, lr=LR, momentum=0.9, weight_decay=0.01),
    "four": arranged(
        4, "domain", rounds=4, local_steps=2, lr=LR, server_optimizer="Adam", server_lr=0.01, l2=0.01, **SCHEDULED
    ),
    "two of five": arranged(
        5, "examples", rounds=5, local_steps=3, lr=LR, momentum=0.9, lr_schedule="cosine", clients_per_round=2
    ),
}


@pytest.mark.parametrize(("method", "arrangement"), crossed(FOLLOWED, UPDATED))
def test_step_rules_and_servers_that_look_at_every_update_follow_their_equations(
    toy_run: Run, method: str, arrangement: str
) -> None:
    args, train = FOLLOWED[method]
    strategy = method.partition("-")[0]
    config = toy_config(**UPDATED[arrangement])
    found = toy_run(strategy=strategy, strategy_args=args, **UPDATED[arrangement]).tensors
    check_same(found, train(build_model(config), domains_of(config), config=config))
    assert gap(found, train_in_rounds(build_model(config), domains_of(config), config=config)) > 1e-4
