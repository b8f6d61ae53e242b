"""What a strategy has its clients do is known before they do it, and refused then."""

from collections.abc import Mapping
from typing import Any

import pytest
from toy import toy_config

from fedhess.alignment import DomainStrategy, LocalTraining, Reference
from fedhess.alignment.loading import BUILT_IN
from fedhess.alignment.rehearsal import check_training
from fedhess.base.errors import StrategyError, UsageError

PRIVATE = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_clip": {"update": 0.1, "statistics": 1.0}}
ROBUST = {"update_mean": "median"}
EVALUATES = "its clients evaluate what they trained, and a private run's sources send no loss"
REFUSED: dict[tuple[str, str], str] = {
    ("ga", "private"): f"--strategy ga: {EVALUATES}",
    ("hgp+ga", "private"): rf"--strategy hgp\+ga: {EVALUATES}",
    ("fish", "private"): "--momentum 0.9: strategy fish carries it from client to client",
    ("groupdro", "robust"): "strategy groupdro cannot have it, since it weighs the domains by itself",
    ("fish", "robust"): "strategy fish cannot have it, since it trains one domain after the other",
    **{
        (name, "robust"): f"--update-mean median: strategy {name.replace('+', '.')} cannot have it, since it makes "
        "something of each update by itself"
        for name in ("ga", "hgp+ga", "fedgma", "fedomg", "scaffold")
    },
}


class Careless(DomainStrategy):
    """Divides by what is zero in a rehearsal."""

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Any]:
        return phase.mean_update({"north": 1 / 0})


@pytest.mark.parametrize(("kind", "changes"), [("private", PRIVATE | {"momentum": 0.9}), ("robust", ROBUST)])
def test_what_goes_with_neither_privacy_nor_robust_means_is_refused_before_anything_runs(
    kind: str, changes: Mapping[str, Any]
) -> None:
    for name in (*BUILT_IN, "hgp+ga"):
        config = toy_config(strategy=name, **changes)
        if (name, kind) in REFUSED:
            with pytest.raises(UsageError, match=REFUSED[name, kind]):
                check_training([config])
        else:
            check_training([config])
        check_training([toy_config(strategy=name)])
    check_training([toy_config(strategy="ga", strategy_args={"s": 0}, **changes)])


def test_an_error_in_a_strategys_own_code_is_its_own() -> None:
    with pytest.raises(StrategyError, match=r"Careless', local_training: ZeroDivisionError"):
        check_training([toy_config(strategy=f"{__name__}:Careless", **ROBUST)])
