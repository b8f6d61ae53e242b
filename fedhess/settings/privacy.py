"""Differential privacy of a run: which settings go together, and how much noise a number of releases needs.

A release is one vector that a source client sends: its update, or one statistic, with Gaussian noise of `m` times the
vector's sensitivity. Each client of a run has the same budget (epsilon, delta) for its releases in all rounds.

k releases with noise m, each chosen adaptively, disclose as much as a single release with noise m / sqrt(k)
(Dong, Roth, Su, "Gaussian differential privacy", Journal of the Royal Statistical Society B, 2022, corollary 3.3). The
(epsilon, delta) of a single release follows the exact formula of Balle and Wang (ICML 2018), implemented in
dp-accounting. There is no amplification by sampling: batches come from passes, and the server knows the drawn clients.
"""

import math
from functools import lru_cache
from typing import Any, Literal

from fedhess.base.errors import UsageError

Unit = Literal["client", "example"]

UPDATE, STATISTICS = "update", "statistics"  # keys of --dp-clip beside the names of statistics


def check_together(config: Any) -> None:
    """Raise ``ValueError`` where settings of a ``RunConfig`` about privacy do not go together."""
    if not config.is_private:
        fields = type(config).model_fields
        alone = [name for name in ("dp_delta", "dp_clip", "dp_unit") if getattr(config, name) != fields[name].default]
        if alone:
            raise ValueError(f"--{alone[0].replace('_', '-')}: it belongs to --dp-epsilon, which is not given")
        return
    if config.dp_delta == 0:
        raise ValueError(
            "--dp-epsilon: Gaussian noise has no epsilon without a delta; give --dp-delta, well below 1 over the "
            "number of examples: 1e-5"
        )
    if UPDATE not in config.dp_clip:
        raise ValueError(
            "--dp-clip: expected the greatest norm of an update, and of statistics where the strategy has any, as in "
            f"update=0.1,statistics=1; got {', '.join(config.dp_clip) or 'nothing'}"
        )
    if config.batchnorm == "averaged":
        raise ValueError(
            "--batchnorm averaged: not with --dp-epsilon, whose noise would make running variances negative; give "
            "--batchnorm frozen"
        )
    if config.average == "swad":
        raise ValueError(
            "--average swad: not with --dp-epsilon, under which no source evaluates, so that there is no loss to "
            "follow; give --average swa or ema"
        )
    if config.dp_unit == "example" and config.statistics_batches > 1:
        raise ValueError(
            f"--statistics-batches {config.statistics_batches}: not with --dp-epsilon and --dp-unit example, which "
            "counts on each example once in a statistic; give a larger --batch-size"
        )


def privacy_words(config: Any) -> str:
    """Describe the privacy of the source clients, to follow other settings; nothing where there is none."""
    if not config.is_private:
        return ""
    bounds = ", ".join(f"{name}={bound:g}" for name, bound in config.dp_clip.items())
    return f", {config.dp_unit}-level privacy epsilon {config.dp_epsilon:g} delta {config.dp_delta:g} (norms {bounds})"


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, delta: float, *, releases: int) -> float:
    """Return the noise's standard deviation over the sensitivity that makes the releases (epsilon, delta)-private.

    >>> round(noise_multiplier(1.0, 1e-5, releases=4), 2)
    7.46
    """
    return float(_accountant().get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases)


@lru_cache(maxsize=4096)
def spent_epsilon(multiplier: float, delta: float, *, releases: int) -> float:
    """Return the epsilon of the releases so far.

    >>> round(spent_epsilon(noise_multiplier(1.0, 1e-5, releases=4), 1e-5, releases=4), 6)
    1.0
    """
    return float(_accountant().get_epsilon_gaussian(multiplier / math.sqrt(releases), delta)) if releases else 0.0


def _accountant() -> Any:
    try:
        import dp_accounting  # optional  # noqa: PLC0415
    except ImportError:
        raise UsageError("--dp-epsilon: dp-accounting is not installed; pip install 'fedhess[dp]'") from None
    return dp_accounting
