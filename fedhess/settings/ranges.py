"""Hyperparameters as DomainBed draws them, number for number.

Source: DomainBed, released code (Gulrajani and Lopez-Paz, ICLR 2021), ``hparams_registry.py`` and ``scripts/train.py``:
setting 0 of a trial has the defaults; setting k draws each hyperparameter from a generator of its own, NumPy's legacy
one, seeded with the hyperparameter's name and with (k, trial). So these are the very values of its sweep.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from fedhess.settings.run_config import Scalar

Draw = Callable[[np.random.RandomState], Scalar]


def _log_uniform(low: float, high: float, *, base: float = 10.0) -> Draw:
    return lambda random: float(base ** random.uniform(low, high))


def _uniform(low: float, high: float) -> Draw:
    return lambda random: float(random.uniform(low, high))


def _whole(draw: Draw) -> Draw:
    return lambda random: int(draw(random))


# What every method draws on images of 224 px: DomainBed's name -> (our setting, its draw). Its learning rate and weight
# decay are those of Adam, which is the server's here. The batch of DomainNet is drawn from fewer sizes.
COMMON: Mapping[str, tuple[str, Draw]] = {
    "lr": ("server_lr", _log_uniform(-5, -3.5)),
    "weight_decay": ("server_optimizer_args.weight_decay", _log_uniform(-6, -2)),
    "batch_size": ("batch_size", _whole(_log_uniform(3, 5.5, base=2))),
}
DOMAIN_NET_BATCH = _whole(_log_uniform(3, 5, base=2))

# What a method draws besides. Fish is not among them: its clients' Adam keeps its state along DomainBed's relay.
OF_METHOD: Mapping[str, Mapping[str, tuple[str, Draw]]] = {
    "irm": {
        "irm_lambda": ("weight", _log_uniform(-1, 5)),
        "irm_penalty_anneal_iters": ("anneal_steps", _whole(_log_uniform(0, 4))),
    },
    "vrex": {
        "vrex_lambda": ("weight", _log_uniform(-1, 5)),
        "vrex_penalty_anneal_iters": ("anneal_steps", _whole(_log_uniform(0, 4))),
    },
    "coral": {"mmd_gamma": ("gamma", _log_uniform(-1, 1))},
    "iga": {"penalty": ("coefficient", _log_uniform(1, 5))},
    "groupdro": {"groupdro_eta": ("eta", _log_uniform(-3, -1))},
    "fishr": {
        "lambda": ("weight", _log_uniform(1, 4)),
        "penalty_anneal_iters": ("anneal_steps", _whole(_uniform(0, 5000))),
        "ema": ("ema", _uniform(0.90, 0.99)),
    },
    # HGP's and Hutchinson's ranges are their authors', the names that they are drawn by are ours.
    "hgp": {"alpha": ("alpha", _log_uniform(-5, -3)), "beta": ("beta", _log_uniform(-3, -1))},
    "hutchinson": {"alpha": ("alpha", _log_uniform(1, 4)), "beta": ("beta", _log_uniform(2, 6))},
}
# Hutchinson's released ranges, and those that stand commented out beside them, around its defaults.
RANGES: Mapping[str, Mapping[str, Mapping[str, tuple[str, Draw]]]] = {
    "released": OF_METHOD,
    "commented-out": {
        **OF_METHOD,
        "hutchinson": {"alpha": ("alpha", _log_uniform(-3, -1)), "beta": ("beta", _log_uniform(-4, -2))},
    },
}


def seed_hash(*parts: object) -> int:
    """Hash what names a draw into a seed, as DomainBed's ``misc.seed_hash`` does."""
    return int(hashlib.md5(str(parts).encode("utf-8")).hexdigest(), 16) % 2**31


def draw_settings(
    strategy: str, benchmark: str, *, number: int, trial: int, ranges: str = "released"
) -> dict[str, Scalar]:
    """Draw one setting of DomainBed's sweep, as a variant of a job has it.

    Args:
        strategy: A strategy's name; one whose ranges are not known draws what all do.
        benchmark: A benchmark's name.
        number: Of the setting within the trial (``hparams_seed``), from 1; setting 0 has the defaults.
        trial: Of the trial (``trial_seed``), from 0.
        ranges: A key of `RANGES`.
    """
    assert number >= 1, "setting 0 has the defaults and draws nothing"
    random_seed = seed_hash(number, trial)
    drawn: dict[str, Scalar] = {}
    for name, (key, draw) in {**COMMON, **RANGES[ranges].get(strategy, {})}.items():
        chosen = DOMAIN_NET_BATCH if (name, benchmark) == ("batch_size", "DomainNet") else draw
        drawn[key] = chosen(np.random.RandomState(seed_hash(random_seed, name)))
    return drawn
