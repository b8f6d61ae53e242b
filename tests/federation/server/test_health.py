"""A sick run says so: once as it goes, in its summary, with the settings to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import toy_config

from fedhess.federation.server.health import sickness
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]
HEALTHY: dict[str, Any] = {"train_loss": 1.0, "train_objective": 3.0, "accuracy": 0.8, "head_change": 0.5}


def test_a_penalty_shows_in_an_objective_that_was_divided_by_its_weight() -> None:
    # (L + w P) / w with L = P = 1 and w = 10^4
    args = {"weight": 10_000, "anneal_steps": 0, "annealing": "rescale", "scale": "absolute"}
    hgp = {"strategy": "hgp", "rounds": 10}
    sizes = {"classes": 4, "train_size": 20}
    sign = sickness(rows(1, train_objective=1.0001), toy_config(**hgp), args=args, **sizes)
    assert "the penalty is 10000 times the loss in round 1" in sign
    off = args | {"alpha": 0, "beta": 0}  # the objective is L
    assert sickness(rows(1, train_objective=1.0), toy_config(**hgp), args=off, **sizes) == ""
    # An epoch is two steps of 20 examples in batches of 16: round 2 begins at step 4, round 3 at step 8.
    epochs, args = toy_config(**hgp, local_epochs=2, local_steps=5), args | {"anneal_steps": 5}
    assert sickness(rows(2, train_objective=2.0), epochs, args=args, **sizes) == ""
    assert "in round 3" in sickness(rows(3, train_objective=1.0001), epochs, args=args, **sizes)


def rows(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"round": number, "role": role} | HEALTHY | changes for role in ("source", "source", "target")]


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (rows(1), ""),
        (rows(1, train_objective=11.5), "the penalty is 10 times the loss in round 1: lower --strategy-args (alpha"),
        (rows(1, train_objective=11.5), "or --lr (0.1)"),
        (rows(1) + rows(2) + rows(3) + rows(4, train_objective=99.0), ""),  # a small loss late is no sign
        (rows(4, accuracy=0.25), ""),  # it may still learn
        (rows(5, accuracy=0.25), "the sources is 25.0 % after round 5, no better than chance with 4 classes"),
        (rows(4, head_change=0.0), ""),
        (rows(5, head_change=5e-5), "moved by 5e-05 of its length in 5 rounds: raise --lr (0.1) or --server-lr (1)"),
    ],
)  # fmt: skip
def test_signs_are_read_from_the_rows(recorded: list[dict[str, Any]], expected: str) -> None:
    sign = sickness(recorded, toy_config(rounds=10), args={"alpha": 0.5, "probes": 3}, classes=4, train_size=48)
    assert expected in sign
    assert bool(sign) == bool(expected)


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        (("--strategy-args", "scale=absolute,alpha=0,beta=90", "--lr", "1e-3"), "the penalty is "),
        (("--lr", "1e-9"), "the head has moved by "),
    ],
)
def test_a_sick_run_warns_once_and_its_summary_names_it(
    command: Command, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], sign: str
) -> None:
    outcome = command(*TOY, "--strategy", "hgp", *options, "--out", "job")
    assert outcome.status == 0, outcome.err
    warnings = [record.getMessage() for record in caplog.records if "hgp, target east, seed 0: " in record.getMessage()]
    assert len(warnings) == 1
    assert sign in warnings[0]
    assert f"sick runs:\n- {warnings[0]}" in Path("job/summary.md").read_text()


def test_diverged_training_advises_lower_coefficients_and_no_resume(command: Command) -> None:
    args = ("--strategy-args", "scale=absolute,alpha=1000000000,beta=1e9", "--lr", "100")
    outcome = command(*TOY, "--strategy", "hgp", *args, "--out", "job")
    assert outcome.status == 1
    assert "values that are not finite" in outcome.err
    assert "Begin again: lower --strategy-args (alpha=1e+09, beta=1e+09, weight=1) or --lr (100)" in outcome.err
    assert "--resume" not in outcome.err
