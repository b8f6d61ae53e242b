"""How a learning rate changes over the rounds, and the arguments of averages of models over rounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedhess.base.errors import did_you_mean

Schedule = Literal["constant", "step", "cosine"]

# The arguments of each average and their defaults; they are described in fedhess/federation/server/averaging.py.
AVERAGES: Mapping[str, Mapping[str, int | float]] = {
    "none": {},
    "swa": {"start": 0.75, "every": 1},
    "swad": {"n_converge": 3, "n_tolerance": 6, "tolerance_ratio": 0.3},
    "ema": {"decay": 0.9},
}
# SWAD's released settings: 1.2 in place of 1.3 times the loss on VLCS.
_OF_BENCHMARK = {("swad", "VLCS"): {"tolerance_ratio": 0.2}}
# Ranges with both ends included, except those in _OPEN.
_RANGES = {"start": (0, 1), "tolerance_ratio": (0, math.inf), "decay": (0, 1)}
_OPEN = ("decay", "tolerance_ratio")  # at the upper end


@dataclass(frozen=True)
class LearningRate:
    """A learning rate by round: computed from the round alone, so the same wherever it is computed.

    In round t of a warm-up of W rounds it is ``base`` times t / (W + 1) (Goyal et al., arXiv 1706.02677, section 2.2).
    After the warm-up, ``constant`` is ``base``. ``step`` is ``base``, and a tenth of it after ``drop_after`` of all R
    rounds. ``cosine`` is ``base`` times (1 + cos(pi (t - W - 1) / (R - W))) / 2 (Loshchilov and Hutter, "SGDR", ICLR
    2017, eq. 5, without restarts): ``base`` at first, and 0 in the round after the last. These are torch's
    ``LinearLR``, ``MultiStepLR`` and ``CosineAnnealingLR`` with rounds as epochs; a round's local steps share its rate.

    >>> rate = LearningRate(1.0, "cosine", rounds=5, warmup=1)
    >>> [round(rate.at(t), 3) for t in range(1, 6)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """

    base: float
    schedule: Schedule
    rounds: int
    warmup: int = 0
    drop_after: float = 0.8

    def at(self, server_round: int) -> float:
        """Return the learning rate in a round, from 1."""
        if server_round <= self.warmup:
            return self.base * server_round / (self.warmup + 1)
        if self.schedule == "cosine":
            turned = (server_round - self.warmup - 1) / (self.rounds - self.warmup)
            return self.base * (1 + math.cos(math.pi * turned)) / 2
        dropped = self.schedule == "step" and server_round > round(self.drop_after * self.rounds)
        return self.base / 10 if dropped else self.base

    @property
    def words(self) -> str:
        """Description of how it changes, to follow its value; empty if it does not change."""
        words = [f"warm-up of {self.warmup} rounds"] if self.warmup else []
        if self.schedule == "step":
            words.append(f"a tenth after {100 * self.drop_after:g} % of the rounds")
        elif self.schedule == "cosine":
            words.append("cosine")
        return f" ({', '.join(words)})" if words else ""


def current_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings that an earlier version recorded to those of this version.

    Before ``lr_schedule`` existed, ``lr_drop_after`` alone made a step schedule, and 0 a constant one.
    """
    settings = dict(given)
    if "lr_drop_after" in settings and "lr_schedule" not in settings:
        settings["lr_schedule"] = "step" if settings["lr_drop_after"] else "constant"
        if not settings["lr_drop_after"]:
            del settings["lr_drop_after"]
    return settings


def average_args(average: str, given: Mapping[str, Any], *, benchmark: str) -> dict[str, Any]:
    """Complete the arguments of an average by their defaults, and check them.

    >>> average_args("swa", {"start": 0}, benchmark="PACS")
    {'start': 0, 'every': 1}
    """
    defaults = {**AVERAGES[average], **_OF_BENCHMARK.get((average, benchmark), {})}
    for key, value in given.items():
        if key not in defaults:
            known = did_you_mean(key, defaults) if defaults else "give --average swa, swad or ema"
            raise ValueError(f"--average {average} has no argument {key!r}; {known}")
        whole = isinstance(defaults[key], int)
        low, high = _RANGES.get(key, (1, math.inf))
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not fits or (whole and not isinstance(value, int)) or (key in _OPEN and value == high):
            kind = "a whole number" if whole else "a number"
            upper = "" if high == math.inf else f" and {'less than' if key in _OPEN else 'at most'} {high}"
            raise ValueError(f"{key}: expected {kind} of at least {low}{upper}, got {value!r}")
    return {**defaults, **given}
