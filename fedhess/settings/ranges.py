"""Search ranges of each method's settings, with their sources, and DomainBed's way of drawing from them.

DomainBed (Gulrajani and Lopez-Paz, ICLR 2021), released code, ``hparams_registry.py`` and ``scripts/train.py``: setting
0 of a trial has the defaults; setting k draws each hyperparameter from a generator of its own, NumPy's legacy one,
seeded with the hyperparameter's name and with (k, trial). With DomainBed's ranges the values are thus exactly those of
its sweep. A value depends neither on the other hyperparameters nor on the number of settings drawn.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedhess.settings.assignments import Scalar
from fedhess.settings.combined import joined, parts_of

DOMAINBED = "DomainBed, hparams_registry.py"
HESSIAN = "released code of Hemati et al., ICCV 2023"
FEDIIR = "released code of Guo et al., ICML 2023, domainbed/hparams_registry.py"
FEDGMA = "Tenison et al., TMLR 2023"
FEDPROX = "released code of Li et al., MLSys 2020, README: between the candidates 0.001, 0.01, 0.1, 0.5 and 1"
OURS = "ours"
GIVEN = "--range"
STEPS = 5001  # of DomainBed's training; its numbers of steps are relative to it


@dataclass(frozen=True)
class Range:
    """What a value is drawn from: uniform, uniform in its logarithm, or one of several choices."""

    low: float = 0.0  # the ends; where there is a base, its exponents
    high: float = 1.0
    source: str = OURS  # who published it
    base: float = 0.0  # of the logarithm; 0 for a uniform draw
    whole: bool = False  # cut to a whole number
    choices: tuple[Scalar, ...] = ()  # in place of a range
    name: str = ""  # seeds the draw beside the numbers of setting and trial: DomainBed's name of the hyperparameter
    default: float | None = None  # the source's own default, which the range belongs to
    scale: float = 1.0  # what a drawn value is multiplied by

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        low, high = (self.base**end if self.base else end for end in (self.low, self.high))
        return low * self.scale, high * self.scale

    def draw(self, key: str, *, number: int, trial: int) -> Scalar:
        """Draw a value; ``key`` seeds the draw if the range has no name of its own."""
        random = np.random.RandomState(seed_hash(seed_hash(number, trial), self.name or key))
        if self.choices:
            return self.choices[int(random.choice(len(self.choices)))]
        drawn = float(random.uniform(self.low, self.high))
        value = (self.base**drawn if self.base else drawn) * self.scale
        return int(value) if self.whole else float(value)

    def within(self, value: Scalar) -> bool:
        """Whether a value could be drawn."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.ends[0] <= value <= self.ends[1]

    def place(self, value: float) -> float:
        """Return a value's position in the range, on the scale of the draw: 0 at the lower end, 1 at the upper."""
        low, high = self.ends
        if self.base:
            low, high, value = (math.log(max(end, 1e-300)) for end in (low, high, value))
        return (value - low) / (high - low)

    def describe(self) -> str:
        """Write it as ``--range`` takes it.

        >>> Range(-5, -3, base=10.0).describe()
        '1e-05:0.001:log'
        """
        if self.choices:
            return " or ".join(map(str, self.choices))
        low, high = self.ends
        return f"{low:.4g}:{high:.4g}" + (":log" if self.base else "")


def _powers(low: float, high: float, source: str = DOMAINBED, **more: object) -> Range:
    return Range(low, high, source, **{"base": 10.0, **more})  # type: ignore[arg-type]


# What every method draws on images of 224 px. DomainBed's learning rate and weight decay belong to Adam, which runs on
# the server here. DomainNet has a smaller range of batch sizes.
COMMON: Mapping[str, Range] = {
    "server_lr": _powers(-5, -3.5, name="lr"),
    "server_optimizer_args.weight_decay": _powers(-6, -2, name="weight_decay"),
    "batch_size": Range(3, 5.5, DOMAINBED, base=2.0, whole=True),
}
DOMAIN_NET_BATCH = replace(COMMON["batch_size"], high=5)
# The same for images of 28 px, for which DomainBed has no weight decay.
COMMON_OF_DIGITS: Mapping[str, Range] = {
    "server_lr": _powers(-4.5, -2.5, name="lr"),
    "batch_size": Range(3, 9, DOMAINBED, base=2.0, whole=True),
}
DIGITS = ("RotatedMNIST", "ColoredMNIST", "Digits")

_ANNEALED = _powers(0, 4, whole=True, default=500)

# What a method draws in addition.
OF_METHOD: Mapping[str, Mapping[str, Range]] = {
    "erm": {},
    "irm": {
        "weight": _powers(-1, 5, name="irm_lambda", default=100),
        "anneal_steps": replace(_ANNEALED, name="irm_penalty_anneal_iters"),
    },
    "vrex": {
        "weight": _powers(-1, 5, name="vrex_lambda", default=10),
        "anneal_steps": replace(_ANNEALED, name="vrex_penalty_anneal_iters"),
    },
    "coral": {"gamma": _powers(-1, 1, name="mmd_gamma", default=1)},
    "iga": {"coefficient": _powers(1, 5, name="penalty", default=1000)},
    "groupdro": {"eta": _powers(-3, -1, name="groupdro_eta", default=0.01)},
    "fish": {"eps": Range(0.05, 0.5, DOMAINBED, choices=(0.05, 0.1, 0.5), name="meta_lr", default=0.5)},
    "fishr": {
        "weight": _powers(1, 4, name="lambda", default=1000),
        "anneal_steps": Range(0, 5000, DOMAINBED, whole=True, name="penalty_anneal_iters", default=1500),
        "ema": Range(0.90, 0.99, DOMAINBED, default=0.95),
    },
    # The draws of these two are seeded with our own names.
    "hgp": {"alpha": _powers(-5, -3, HESSIAN, default=1e-4), "beta": _powers(-3, -1, HESSIAN, default=5e-3)},
    "hutchinson": {"alpha": _powers(1, 4, HESSIAN, default=1e-3), "beta": _powers(2, 6, HESSIAN, default=5e-3)},
    "fediir": {
        "gamma": _powers(-4, -2, FEDIIR, name="penalty", default=1e-3),
        "ema": Range(0.90, 0.99, FEDIIR, choices=(0.90, 0.95, 0.99), default=0.95),
    },
    "rsc": {
        "f": Range(0, 0.5, DOMAINBED, name="rsc_f_drop_factor", default=1 / 3),
        "b": Range(0, 0.5, DOMAINBED, name="rsc_b_drop_factor", default=1 / 3),
    },
    "mixup": {"alpha": _powers(-1, 1, name="mixup_alpha", default=0.2)},
    "mixstyle": {"p": Range(0.1, 0.9, OURS, default=0.5), "alpha": _powers(-2, 0, OURS, default=0.1)},
    "cma": {
        "a": _powers(math.log10(0.003), math.log10(0.3), OURS, default=0.03),
        "b": _powers(-3, -1, OURS, default=0.01),
    },
    "fedgma": {"tau": Range(0.1, 0.9, FEDGMA, choices=(0.1, 0.4, 0.9), default=0.4)},
    "scaffold": {},
    "fedprox": {"mu": _powers(-3, 0, FEDPROX, default=0.01)},
    # No ranges were published for these: a decade to both sides of the default, except for s of ga.
    "server_alignment": {"step": _powers(-3, -1, OURS, default=0.01)},
    "fedomg": {"k": _powers(math.log10(0.05), math.log10(5), OURS, default=0.5)},
    "ga": {"s": Range(0.05, 0.5, OURS, default=0.2)},
    "fedsam": {"rho": _powers(-2, 0, OURS, default=0.1)},
    "fedsr": {"l2r": _powers(-3, -1, OURS, default=0.01), "cmi": _powers(-4, -2, OURS, default=0.001)},
    "sagm": {"rho": _powers(math.log10(0.005), math.log10(0.5), OURS, default=0.05)},
    "fedadam": {"eta": _powers(-2, 0, OURS, default=0.1)},
}
# Numbers of steps, relative to DomainBed's.
OF_STEPS = ("anneal_steps",)
# Hutchinson's released ranges, and those commented out beside them, which lie around its defaults.
RANGES: Mapping[str, Mapping[str, Mapping[str, Range]]] = {
    "released": OF_METHOD,
    "commented-out": {
        **OF_METHOD,
        "hutchinson": {"alpha": _powers(-3, -1, HESSIAN, default=1e-3), "beta": _powers(-4, -2, HESSIAN, default=5e-3)},
    },
}


def ranges_of(strategy: str, *, ranges: str = "released") -> dict[str, Range]:
    """Return the ranges of a strategy's own arguments, or of a combination's parts; none if they are not known."""
    return joined(strategy, lambda part: RANGES[ranges].get(part, {}))


def are_known(strategy: str) -> bool:
    """Whether the ranges of a strategy, and of every part of a combination, are known."""
    return all(part in OF_METHOD for part in parts_of(strategy).values())


def seed_hash(*parts: object) -> int:
    """Hash what names a draw into a seed, as DomainBed's ``misc.seed_hash`` does."""
    return int(hashlib.md5(str(parts).encode("utf-8")).hexdigest(), 16) % 2**31


def common_ranges(benchmark: str) -> dict[str, Range]:
    """Return the ranges that every method draws from in DomainBed on a benchmark."""
    if benchmark in DIGITS:
        return dict(COMMON_OF_DIGITS)
    return {**COMMON, **({"batch_size": DOMAIN_NET_BATCH} if benchmark == "DomainNet" else {})}


def around(default: float, *, decades: float = 1.0, whole: bool = False) -> Range:
    """Return a range of ours: ``decades`` decades to both sides of a positive default.

    >>> around(0.1).describe()
    '0.01:1:log'
    """
    centre = math.log10(default)
    return Range(centre - decades, centre + decades, OURS, base=10.0, whole=whole, default=default)


def draw_settings(
    strategy: str, benchmark: str, *, number: int, trial: int, ranges: str = "released"
) -> dict[str, Scalar]:
    """Draw one setting of DomainBed's sweep, in the form of a job's variant; ``ranges`` is a key of `RANGES`.

    ``number`` is the setting's number within the trial (``hparams_seed``), from 1: setting 0 has the defaults.
    ``trial`` is the ``trial_seed``, from 0. A strategy without known ranges draws from the common ranges only.
    """
    assert number >= 1, "setting 0 has the defaults and draws nothing"
    space = {**common_ranges(benchmark), **ranges_of(strategy, ranges=ranges)}
    return {key: each.draw(key, number=number, trial=trial) for key, each in space.items()}
