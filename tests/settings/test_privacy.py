"""Which settings a private run must and cannot have, and the noise that its budget takes."""

import math

import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.settings.privacy import noise_multiplier, spent_epsilon

PRIVATE = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_clip": {"update": 0.1, "statistics": 1.0}}


@pytest.mark.parametrize(("epsilon", "releases"), [(0.5, 1), (8.0, 30), (50.0, 40)])
def test_noise_has_the_epsilon_that_a_numerical_accountant_finds(epsilon: float, releases: int) -> None:
    multiplier = noise_multiplier(epsilon, 1e-5, releases=releases)
    accountant = PLDAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(multiplier), releases))
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, rel=1e-3)


def test_epsilon_grows_with_the_releases_from_nothing_to_the_budget() -> None:
    multiplier = noise_multiplier(8.0, 1e-5, releases=10)
    spent = [spent_epsilon(multiplier, 1e-5, releases=number) for number in range(11)]
    assert spent == sorted(spent)
    assert (spent[0], spent[10]) == (0.0, pytest.approx(8.0))
    assert math.isfinite(noise_multiplier(1e6, 1e-9, releases=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dp_delta": 0.0}, "--dp-epsilon: Gaussian noise has no epsilon without a delta; give --dp-delta"),
        ({"dp_clip": {}}, "--dp-clip: expected the greatest norm of an update.* got nothing"),
        ({"dp_clip": {"statistics": 1.0}}, "--dp-clip: expected the greatest norm of an update.* got statistics"),
        ({"dp_clip": {"update": 0.0}}, "--dp-clip.update: expected more than 0, got 0.0"),
        ({"dp_clip": {"update": math.inf}}, "--dp-clip.update: expected a finite number"),
        ({"dp_epsilon": -1.0}, "--dp-epsilon: expected at least 0, got -1.0"),
        ({"dp_delta": 1.0}, "--dp-delta: expected less than 1, got 1.0"),
        ({"dp_epsilon": 0.0}, "--dp-delta: it belongs to --dp-epsilon, which is not given"),
        ({"dp_epsilon": 0.0, "dp_delta": 0.0}, "--dp-clip: it belongs to --dp-epsilon"),
        ({"batchnorm": "averaged"}, "--batchnorm averaged: not with --dp-epsilon"),
        ({"average": "swad"}, "--average swad: not with --dp-epsilon"),
        ({"dp_unit": "example", "statistics_batches": 2}, "--statistics-batches 2: not with --dp-epsilon"),
    ],
)
def test_what_cannot_be_private_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy_config(**PRIVATE | changes)


def test_a_private_run_cannot_train_further() -> None:
    assert "dp_epsilon" in toy_config(**PRIVATE).bound_to_rounds, "its noise was for its number of rounds"
