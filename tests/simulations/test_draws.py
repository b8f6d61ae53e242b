"""Settings drawn as DomainBed draws them."""

from collections.abc import Callable

import numpy as np
import pytest

from fedhess.simulations.scenarios.draws import draw_settings, seed_hash


def test_settings_are_drawn_as_domainbed_draws_them() -> None:
    def theirs(name: str, number: int, trial: int) -> np.random.RandomState:
        return np.random.RandomState(seed_hash(seed_hash(number, trial), name))

    for number, trial in ((1, 0), (7, 2)):
        drawn = draw_settings("irm", "PACS", number=number, trial=trial)
        assert drawn == {
            "server_lr": 10 ** theirs("lr", number, trial).uniform(-5, -3.5),
            "server_optimizer_args.weight_decay": 10 ** theirs("weight_decay", number, trial).uniform(-6, -2),
            "batch_size": int(2 ** theirs("batch_size", number, trial).uniform(3, 5.5)),
            "weight": 10 ** theirs("irm_lambda", number, trial).uniform(-1, 5),
            "anneal_steps": int(10 ** theirs("irm_penalty_anneal_iters", number, trial).uniform(0, 4)),
        }
    assert draw_settings("irm", "PACS", number=1, trial=0) != draw_settings("irm", "PACS", number=1, trial=1)
    assert seed_hash(0, 0) == 894182419, "MD5 of '(0, 0)'"


# By method: our setting, the name that DomainBed's registry (hparams_registry.py) draws it by, and its draw there.
# HGP's and Hutchinson's are not in the registry.
REGISTRY: dict[str, dict[str, tuple[str, Callable[[np.random.RandomState], float]]]] = {
    "erm": {},
    "irm": {
        "weight": ("irm_lambda", lambda r: 10 ** r.uniform(-1, 5)),
        "anneal_steps": ("irm_penalty_anneal_iters", lambda r: int(10 ** r.uniform(0, 4))),
    },
    "vrex": {
        "weight": ("vrex_lambda", lambda r: 10 ** r.uniform(-1, 5)),
        "anneal_steps": ("vrex_penalty_anneal_iters", lambda r: int(10 ** r.uniform(0, 4))),
    },
    "coral": {"gamma": ("mmd_gamma", lambda r: 10 ** r.uniform(-1, 1))},
    "iga": {"coefficient": ("penalty", lambda r: 10 ** r.uniform(1, 5))},
    "groupdro": {"eta": ("groupdro_eta", lambda r: 10 ** r.uniform(-3, -1))},
    "fishr": {
        "weight": ("lambda", lambda r: 10 ** r.uniform(1, 4)),
        "anneal_steps": ("penalty_anneal_iters", lambda r: int(r.uniform(0, 5000))),
        "ema": ("ema", lambda r: r.uniform(0.90, 0.99)),
    },
    "hgp": {
        "alpha": ("alpha", lambda r: 10 ** r.uniform(-5, -3)),
        "beta": ("beta", lambda r: 10 ** r.uniform(-3, -1)),
    },
    "hutchinson": {
        "alpha": ("alpha", lambda r: 10 ** r.uniform(1, 4)),
        "beta": ("beta", lambda r: 10 ** r.uniform(2, 6)),
    },
    "hutchinson commented-out": {
        "alpha": ("alpha", lambda r: 10 ** r.uniform(-3, -1)),
        "beta": ("beta", lambda r: 10 ** r.uniform(-4, -2)),
    },
}


@pytest.mark.parametrize("case", REGISTRY)
def test_every_method_draws_its_own_settings(case: str) -> None:
    strategy, _, ranges = case.partition(" ")
    common = {"server_lr", "server_optimizer_args.weight_decay", "batch_size"}
    for number, trial in ((1, 0), (4, 1), (19, 2)):
        drawn = draw_settings(strategy, "VLCS", number=number, trial=trial, ranges=ranges or "released")
        assert set(drawn) == common | set(REGISTRY[case])
        for key, (name, draw) in REGISTRY[case].items():
            seed = seed_hash(seed_hash(number, trial), name)
            assert drawn[key] == draw(np.random.RandomState(seed)), key
            assert type(drawn[key]) is (int if key == "anneal_steps" else float), key


def test_first_drawn_setting_is_what_it_was() -> None:
    """The numbers themselves, made once: a change of seeds or ranges anywhere would move them."""
    assert draw_settings("fishr", "PACS", number=1, trial=0) == pytest.approx(
        {
            "server_lr": 2.7028930742148706e-05,
            "server_optimizer_args.weight_decay": 4.4832883881609976e-4,
            "batch_size": 39,
            "weight": 809.251247284292,
            "anneal_steps": 4072,
            "ema": 0.9129082782560279,
        }
    )


def test_domain_net_draws_smaller_batches() -> None:
    sizes = {
        name: [draw_settings("erm", name, number=n, trial=0)["batch_size"] for n in range(1, 60)]
        for name in ("PACS", "VLCS", "DomainNet")
    }
    assert max(sizes["DomainNet"]) < 32 <= max(sizes["PACS"])
    assert min(map(min, sizes.values())) >= 8
