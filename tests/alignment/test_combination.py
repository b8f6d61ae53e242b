"""Strategies combined by a plus sign: each part acts, what has no place beside another is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy import toy_config

from fedhess.alignment.loading import client_half, find_method, load_strategy, resolved_args
from fedhess.base.errors import UsageError
from fedhess.settings.defaults import default_strategy_args
from fedhess.settings.ranges import draw_settings
from tests.promises.conftest import toy_benchmark, toy_run
from tests.promises.test_alive import assert_undisturbed, same

__all__ = ["toy_benchmark", "toy_run"]

Run = Callable[..., Any]
OFF = {"hgp_alpha": 0.0, "hgp_beta": 0.0, "sagm_rho": 0.0, "sagm_alpha": 0.0, "groupdro_eta": 0.0}
TRIPLE = {"strategy": "hgp+sagm+groupdro", "local_steps": 2}


@pytest.mark.parametrize(
    ("alone", "args", "off"),
    [
        ("hgp", {}, ("sagm_", "groupdro_")),
        ("sagm", {"rho": 0.2}, ("hgp_", "groupdro_")),
        ("groupdro", {"eta": 0.3}, ("hgp_", "sagm_")),
    ],
)
def test_a_combination_with_the_others_off_is_the_part_bit_for_bit(
    toy_run: Run, alone: str, args: dict[str, float], off: tuple[str, ...]
) -> None:
    neutral = {key: value for key, value in OFF.items() if key.startswith(off)}
    own = {f"{alone}_{key}": value for key, value in args.items()}
    expected = toy_run(strategy=alone, strategy_args=args, local_steps=2).tensors
    assert same(toy_run(**TRIPLE, strategy_args=neutral | own).tensors, expected)
    assert not same(toy_run(**TRIPLE, strategy_args=own).tensors, expected), "the others act where they are on"


def test_a_combination_is_undisturbed_by_order_restarts_and_resuming(toy_run: Run, tmp_path: Path) -> None:
    args = {"hgp_alpha": 0.05, "groupdro_eta": 0.3, "sagm_rho": 0.1}
    assert_undisturbed(toy_run, tmp_path / "run", **TRIPLE, strategy_args=args, dtype="float32")


def test_a_penaltys_schedule_resets_the_server_optimizer_of_a_combination(toy_run: Run) -> None:
    schedule = {"weight": 40.0, "annealing": "reset", "anneal_steps": 2}
    adam = {"server_optimizer": "Adam", "server_lr": 0.01, "rounds": 4}
    expected = toy_run(strategy="hgp", strategy_args=schedule, **adam).tensors
    args = {f"hgp_{key}": value for key, value in schedule.items()} | {"fedgma_tau": 0.0}
    assert same(toy_run(strategy="hgp+fedgma", strategy_args=args, **adam).tensors, expected)
    late = args | {"hgp_annealing": "rescale"}
    assert not same(toy_run(strategy="hgp+fedgma", strategy_args=late, **adam).tensors, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hgp+hutchinson", "'hgp' and 'hutchinson' are each a penalty; expected one penalty, one step rule"),
        ("sagm+fedsam", "'sagm' and 'fedsam' are each a step rule"),
        ("fedgma+groupdro", "'fedgma' and 'groupdro' are each a server rule"),
        ("hgp+scaffold", r"'scaffold' is a penalty and a server rule"),
        ("hgp+fedadam", "'fedadam' is a plain Flower strategy, which has no hooks to combine"),
        ("fish+mixup", "trains on one domain at a time, and Mixup mixes two; leave one of the two out"),
        ("fedprox+fish", "FedProx would pull to it"),
        ("hgp+erm", "'erm' adds nothing to the others; leave it out"),
        ("hgp+hgp", "two of its parts have the same name"),
        ("hgp+sag", "unknown strategy 'sag'; did you mean 'sagm'"),
        ("hgp+mine.rules:hgp_sharp", r"of 'mine.rules:hgp_sharp', hgp_sharp_..., could be those of 'hgp', hgp_..."),
        ("hgp+", "unknown strategy ''"),
    ],
)
def test_what_does_not_combine_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_method(name)


def test_arguments_have_the_prefix_of_their_part() -> None:
    assert {"hgp_alpha", "hgp_scale", "sagm_alpha", "sagm_rho"} < find_method("hgp+sagm").parameters.keys()
    made = resolved_args("hgp+sagm", {"sagm_rho": 0.2})
    assert (made["hgp_alpha"], made["sagm_alpha"], made["sagm_rho"]) == (0.003, 0.001, 0.2)
    with pytest.raises(UsageError, match=r"has no argument 'rho'; did you mean 'sagm_rho'"):
        load_strategy("hgp+sagm", {"rho": 0.1})


def test_defaults_and_ranges_are_those_of_the_parts() -> None:
    assert default_strategy_args("fishr+fedsam", model="resnet18") == {"fishr_anneal_steps": 240}
    drawn = draw_settings("hgp+fedgma", "VLCS", number=1, trial=0)
    assert {"hgp_alpha", "hgp_beta", "fedgma_tau"} < drawn.keys()
    assert drawn["fedgma_tau"] in (0.1, 0.4, 0.9)


def test_a_part_that_does_not_suit_the_settings_says_so_under_its_name_there() -> None:
    config = toy_config(strategy="fishr+sagm", strategy_args={"fishr_anneal_steps": 500, "fishr_annealing": "reset"})
    for check in (client_half(config).check, partial(client_half(config).check_steps, steps=500)):
        with pytest.raises(UsageError, match=r"set --strategy-args fishr\+sagm.fishr_anneal_steps=N"):
            check(config)
