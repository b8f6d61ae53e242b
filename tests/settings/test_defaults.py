"""Defaults by model and benchmark: every penalty acts somewhere in the run they make."""

import itertools
from typing import Any

import pytest

from fedhess.alignment.loading import BUILT_IN, load_strategy
from fedhess.alignment.strategy import DomainStrategy
from fedhess.base.errors import UsageError
from fedhess.settings.defaults import BENCHMARK_STRATEGY_ARGS, SETTINGS, default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig

PLACES = [("", model) for model in SETTINGS] + [(name, m) for name, of in BENCHMARK_STRATEGY_ARGS.items() for m in of]


def configured(strategy: str, *, model: str, benchmark: str = "", **changes: Any) -> tuple[DomainStrategy, RunConfig]:
    settings = default_settings(model, benchmark=benchmark) | changes
    if strategy == "fish":  # its server has a step of its own
        settings |= {"server_optimizer": "SGD", "server_lr": 1.0}
    if strategy == "mixup":
        settings |= {"partition": "lambda", "clients": 2, "heterogeneity": 0.5}
    args = changes.get("strategy_args", default_strategy_args(strategy, model=model, benchmark=benchmark))
    names = {"domains": "IconPACS", "sources": ("a", "b"), "targets": ("c",), "model": model, "strategy": strategy}
    config = RunConfig.checked(settings | names | {"strategy_args": args})
    made = load_strategy(strategy, args)
    return made, config  # type: ignore[return-value]


@pytest.mark.parametrize(("benchmark", "model"), PLACES)
def test_every_penalty_acts_within_the_default_run(benchmark: str, model: str) -> None:
    checked = 0
    for strategy in BUILT_IN:
        made, config = configured(strategy, model=model, benchmark=benchmark)
        if isinstance(made, DomainStrategy):
            made.check(config)
            assert any(made.schedule.at(step) > 0 for step in range(config.rounds * config.local_steps))
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(("anneal", "weight"), itertools.product([99, 100, 1500], [0.0, 10.0]))
def test_a_penalty_that_would_never_begin_is_refused(anneal: int, weight: float) -> None:
    args = {"anneal_steps": anneal, "weight": weight}
    made, config = configured("fishr", model="lite0-features", rounds=10, strategy_args=args)
    if anneal < 100 or weight == 0:
        made.check(config)
        return
    with pytest.raises(UsageError, match=r"off throughout: the run takes 100 local steps .* N < 100"):
        made.check(config)
