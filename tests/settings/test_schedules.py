"""Learning rates by round are torch's schedulers; arguments of averages are checked; old records keep their meaning."""

import pytest
import torch
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.jobs.job import with_defaults
from fedhess.settings.run_config import RunConfig
from fedhess.settings.schedules import LearningRate, average_args

OF_A_RUN = {"sources": ("north",), "targets": ("east",)}
EARLIER = {"domains": "Toy", "model": "mlp", "rounds": 10, "lr": 0.03}


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_each_schedule_is_that_of_torch(schedule: str, warmup: int) -> None:
    rounds, base = 20, 0.03
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    made = torch.optim.lr_scheduler
    schedulers: list[torch.optim.lr_scheduler.LRScheduler] = []
    if warmup:
        schedulers.append(made.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup))
    if schedule == "cosine":
        schedulers.append(made.CosineAnnealingLR(optimizer, T_max=rounds - warmup))
    else:
        drops = [16 - warmup] if schedule == "step" else []
        schedulers.append(made.MultiStepLR(optimizer, drops, gamma=0.1))
    scheduler = made.SequentialLR(optimizer, schedulers, milestones=[warmup] if warmup else [])
    rate = LearningRate(base, schedule, rounds, warmup, 0.8)  # type: ignore[arg-type]
    for server_round in range(1, rounds + 1):
        assert rate.at(server_round) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert rate.at(server_round) > 0
        optimizer.step()
        scheduler.step()


def test_a_constant_rate_is_the_number_itself_and_a_dropped_one_a_tenth_of_it() -> None:
    assert toy_config(lr=0.07).client_rate.at(3) == 0.07
    dropped = toy_config(lr=0.07, rounds=10, lr_schedule="step", server_lr=0.7, server_lr_schedule="step")
    assert [dropped.client_rate.at(t) for t in (8, 9)] == [0.07, 0.07 / 10]
    assert [dropped.server_rate.at(t) for t in (8, 9)] == [0.7, 0.7 / 10]


def test_settings_recorded_before_schedules_mean_what_they_did() -> None:
    def recorded(**more: float) -> RunConfig:
        return RunConfig.checked({**OF_A_RUN, **with_defaults({"settings": EARLIER | more})["settings"]})

    assert [recorded(lr_drop_after=0.6).client_rate.at(t) for t in (6, 7)] == [0.03, 0.03 / 10]
    assert recorded(lr_drop_after=0.0) == recorded()
    assert recorded().lr_schedule == "constant"


def test_a_share_of_the_rounds_alone_makes_no_step_of_the_clients_rate() -> None:
    config = RunConfig.checked(
        OF_A_RUN | EARLIER | {"server_lr": 1.0, "server_lr_schedule": "step", "lr_drop_after": 0.6}
    )
    assert [config.server_rate.at(t) for t in (6, 7)] == [1.0, 0.1]
    assert [config.client_rate.at(t) for t in (6, 7)] == [0.03, 0.03]


def test_rates_say_how_they_change() -> None:
    config = toy_config(rounds=9, lr_schedule="cosine", warmup_rounds=2, server_lr_schedule="step", lr_drop_after=0.5)
    assert config.client_rate.words == " (warm-up of 2 rounds, cosine)"
    assert config.server_rate.words == " (a tenth after 50 % of the rounds)"
    assert toy_config().client_rate.words == ""


def test_settings_that_hang_on_the_total_of_rounds_are_named() -> None:
    assert toy_config(warmup_rounds=1, average="ema").bound_to_rounds == []
    assert toy_config(average="swa", average_args={"start": 0}).bound_to_rounds == []
    both = toy_config(lr_schedule="cosine", server_lr_schedule="step", average="swa")
    assert both.bound_to_rounds == ["lr_schedule", "server_lr_schedule", "average_args"]


def test_arguments_of_an_average_are_complete_and_survive_the_wire() -> None:
    config = toy_config(average="swa", average_args={"every": 2})
    assert config.average_args == {"start": 0.75, "every": 2}
    assert RunConfig.checked(RunConfig.given_in(config.to_run_config())) == config
    assert toy_config().average_args == {}
    assert average_args("swad", {}, benchmark="VLCS")["tolerance_ratio"] == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "mean"}, "--average: expected 'none', 'swa', 'swad' or 'ema', got 'mean'"),
        ({"average_args": {"start": 0}}, "--average none has no argument 'start'; give --average swa, swad or ema"),
        ({"average": "swa", "average_args": {"stat": 0}}, "--average swa has no argument 'stat'; did you mean 'start'"),
        ({"average": "swa", "average_args": {"start": 2}}, "start: expected a number of at least 0 and at most 1, got"),
        ({"average": "swa", "average_args": {"every": 0}}, "every: expected a whole number of at least 1, got 0"),
        ({"average": "swa", "average_args": {"every": 1.5}}, "every: expected a whole number of at least 1, got 1.5"),
        ({"average": "ema", "average_args": {"decay": 1}}, "decay: expected a number of at least 0 and less than 1"),
        ({"average": "ema", "average_args": {"decay": True}}, "decay: expected a number .* got True"),
        ({"average": "swad", "average_args": {"n_converge": "x"}}, "n_converge: expected a whole number .* got 'x'"),
        ({"lr_schedule": "linear"}, "--lr-schedule: expected 'constant', 'step' or 'cosine', got 'linear'"),
        ({"rounds": 4, "warmup_rounds": 4}, "--warmup-rounds: expected fewer than --rounds 4, got 4"),
        ({"rounds": 4, "server_warmup_rounds": 5}, "--server-warmup-rounds: expected fewer than --rounds 4, got 5"),
    ],
)
def test_what_no_schedule_or_average_takes_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy_config(**settings)
