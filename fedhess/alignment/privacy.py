"""Differential privacy of a strategy: how often a client answers, and the norms that statistics are clipped to."""

from collections.abc import Sequence
from functools import lru_cache

from fedhess.alignment.loading import client_half, find_method, load_strategy
from fedhess.alignment.rehearsal import rehearse_references
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.curvature.per_example import FACTORS
from fedhess.settings.assignments import Scalar
from fedhess.settings.privacy import STATISTICS, UPDATE, noise_multiplier
from fedhess.settings.run_config import RunConfig


def bound_of(config: RunConfig, name: str) -> float:
    """Return the greatest norm of an update, or of a statistic by its name."""
    return config.dp_clip[name] if name in config.dp_clip else config.dp_clip[STATISTICS]


def releases_per_round(config: RunConfig) -> int:
    """Count what a private client sends in a round: the update, and every statistic that the strategy asks for."""
    return 1 + len(_asked_in(config))


def run_noise(config: RunConfig) -> float:
    """Return the noise's standard deviation over the sensitivity in each release of a private run."""
    releases = config.rounds * releases_per_round(config)
    return noise_multiplier(config.dp_epsilon, config.dp_delta, releases=releases)


def check_privacy(configs: Sequence[RunConfig]) -> None:
    """Check that the strategies of a job's private runs can be private; other runs are not checked.

    Raises:
        UsageError: A strategy is a plain Flower strategy; a statistic has no bound, or no per-example terms where the
            unit is an example; a bound names no statistic of the job; or dp-accounting is not installed.
        StrategyError: See `rehearse_references`.
    """
    known = {UPDATE, STATISTICS}
    for config in configs:
        known |= find_method(config.strategy).statistics.keys()
    for config in configs:
        if not config.is_private:
            continue
        if find_method(config.strategy).is_flower:
            raise UsageError(
                f"--strategy {config.strategy}: a plain Flower strategy reads weights and losses of its clients, which "
                "--dp-epsilon does not cover; take a strategy of fedhess, erm with --server-optimizer for example"
            )
        for name in config.dp_clip.keys() - known:
            raise UsageError(f"--dp-clip: no strategy of the job has a statistic {name!r}; {did_you_mean(name, known)}")
        _check_statistics(config)
        run_noise(config)


def _check_statistics(config: RunConfig) -> None:
    statistics = client_half(config).statistics
    for name in _asked_in(config):
        if config.dp_unit == "example" and statistics.get(name) not in FACTORS:
            raise UsageError(
                f"--dp-unit example: statistic {name!r} of strategy {config.strategy} is no mean of per-example terms "
                "that could be clipped (head_gradient, head_hvp and hessian_diagonal are); give --dp-unit client"
            )
        if name not in config.dp_clip and STATISTICS not in config.dp_clip:
            raise UsageError(
                f"--dp-clip: strategy {config.strategy} sends the statistic {name!r}, whose greatest norm is not "
                f"given; add {name}=BOUND, or {STATISTICS}=BOUND for all"
            )


def _asked_in(config: RunConfig) -> tuple[str, ...]:
    return _asked(config.strategy, tuple(sorted(config.strategy_args.items())), config.sources)


@lru_cache(maxsize=32)
def _asked(name: str, args: tuple[tuple[str, Scalar], ...], domains: tuple[str, ...]) -> tuple[str, ...]:
    strategy = load_strategy(name, dict(args))  # a new object: a strategy may store the answers
    assert isinstance(strategy, DomainStrategy), "check_privacy refuses others"
    return rehearse_references(strategy, name, domains, private=True)[0]
