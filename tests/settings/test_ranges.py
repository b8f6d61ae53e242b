"""Settings drawn as DomainBed draws them."""

from collections.abc import Callable

import numpy as np
import pytest

from fedhess.settings.ranges import draw_settings, seed_hash

# By method: our setting, the name that DomainBed's registry (hparams_registry.py) draws it by, and its draw there.
# HGP's and Hutchinson's are not in the registry.
Registered = dict[str, tuple[str, Callable[[np.random.RandomState], float]]]
COMMON: Registered = {
    "server_lr": ("lr", lambda r: 10 ** r.uniform(-5, -3.5)),
    "server_optimizer_args.weight_decay": ("weight_decay", lambda r: 10 ** r.uniform(-6, -2)),
    "batch_size": ("batch_size", lambda r: int(2 ** r.uniform(3, 5.5))),
}
REGISTRY: dict[str, Registered] = {
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
    "mixup": {"alpha": ("mixup_alpha", lambda r: 10 ** r.uniform(-1, 1))},
    "rsc": {
        "f": ("rsc_f_drop_factor", lambda r: r.uniform(0, 0.5)),
        "b": ("rsc_b_drop_factor", lambda r: r.uniform(0, 0.5)),
    },
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
    for number, trial in ((1, 0), (4, 1), (19, 2)):
        drawn = draw_settings(strategy, "VLCS", number=number, trial=trial, ranges=ranges or "released")
        seeded = seed_hash(number, trial)
        assert drawn == {
            key: draw(np.random.RandomState(seed_hash(seeded, name)))
            for key, (name, draw) in {**COMMON, **REGISTRY[case]}.items()
        }
        assert {type(value) for key, value in drawn.items() if key in ("anneal_steps", "batch_size")} == {int}
    assert seed_hash(0, 0) == 894182419, "MD5 of '(0, 0)'"


def test_domain_net_draws_smaller_batches() -> None:
    sizes = {
        name: [draw_settings("erm", name, number=n, trial=0)["batch_size"] for n in range(1, 60)]
        for name in ("PACS", "VLCS", "DomainNet")
    }
    assert max(sizes["DomainNet"]) < 32 <= max(sizes["PACS"])
    assert min(map(min, sizes.values())) >= 8
