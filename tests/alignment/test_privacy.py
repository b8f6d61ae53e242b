"""What strategies ask of a private client, counted before a run, and what they cannot."""

import pytest
from toy import toy_config

from fedhess.alignment.privacy import check_privacy, releases_per_round, run_noise
from fedhess.base.errors import UsageError
from fedhess.settings.privacy import noise_multiplier

PRIVATE = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_clip": {"update": 0.1, "statistics": 1.0}}


@pytest.mark.parametrize(
    ("strategy", "args", "releases"),
    [
        ("erm", {}, 1),
        ("fish", {}, 1),
        ("hgp", {}, 3),
        ("hgp", {"form": "mean_of_hgp"}, 3),
        ("hgp", {"alpha": 0}, 2),
        ("hgp", {"weight": 0}, 1),
        ("hutchinson", {"probes": 3}, 3),
        ("fishr", {}, 2),
        ("fediir", {}, 2),
        ("server_alignment", {}, 3),
        ("iga", {}, 2),
    ],
)
def test_releases_are_the_update_and_each_statistic(strategy: str, args: dict[str, object], releases: int) -> None:
    config = toy_config(strategy=strategy, strategy_args=args, rounds=7, **PRIVATE)
    assert releases_per_round(config) == releases
    assert run_noise(config) == noise_multiplier(8.0, 1e-5, releases=7 * releases)


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        ("fedadam", {}, "--strategy fedadam: a plain Flower strategy"),
        ("hgp", {"dp_clip": {"update": 1.0, "gradient": 1.0}}, "sends the statistic 'hvp', whose greatest norm"),
        ("hgp", {"dp_clip": {"update": 1.0, "statistics": 1.0, "gradent": 1.0}}, "did you mean 'gradient'"),
        ("vrex", {"dp_unit": "example"}, "statistic 'loss' of strategy vrex is no mean of per-example terms"),
        ("iga", {"dp_unit": "example"}, "statistic 'network_gradient' of strategy iga"),
    ],
)
def test_what_cannot_be_private_is_refused(strategy: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_privacy([toy_config(strategy=strategy, **PRIVATE | changes)])


@pytest.mark.parametrize("unit", ["client", "example"])
def test_a_bound_of_another_strategy_of_the_job_is_none_too_many(unit: str) -> None:
    bounds = {"update": 1.0, "gradient": 1.0, "hvp": 1.0, "diagonal": 1.0}
    private = PRIVATE | {"dp_clip": bounds, "dp_unit": unit}
    check_privacy([toy_config(strategy=strategy, **private) for strategy in ("erm", "hgp", "hutchinson")])
