"""Whose server step a strategy has: what a plain Flower strategy is said to do, and what is refused beside it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedhess.alignment.server_step import describe_server, require_server
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS, open_benchmark
from fedhess.federation.run_settings import settings_of_run
from fedhess.jobs.description import header, whole_protocol
from fedhess.jobs.plan import plan_job
from tests.conftest import TOY_OF_FLOWER, Outcome

Command = Callable[..., Outcome]
PATH = "flwr.serverapp.strategy:"
CONFIG = {"domains": "IconPACS", "sources": "photo,cartoon", "targets": "sketch", "model": "lite0-features"}


class Renamed(FedAvg):
    """Flower's mean, under another name."""


class Another(FedAvg):
    """Aggregates in its own way, of which nothing is known."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"erm": {}, "hgp": {}}, "SGD lr 1"),
        ({"fedadam": {"eta": 0.05}}, "FedAdam of Flower, by examples"),
        ({PATH + "FedYogi": {"weighted_by_key": "loss"}}, "FedYogi of Flower, by loss"),
        ({PATH + "FedMedian": {}}, "FedMedian of Flower"),
        ({"tests.alignment.test_server_step:Renamed": {}}, "Renamed, a Flower strategy, by examples"),
        ({"tests.alignment.test_server_step:Another": {}}, "Another, a Flower strategy"),
        ({"erm": {}, "fedadam": {}}, "SGD lr 1 (fedadam: FedAdam of Flower, by examples)"),
        (
            {"fedadam": {}, PATH + "FedMedian": {}},
            f"fedadam: FedAdam of Flower, by examples; {PATH}FedMedian: FedMedian of Flower",
        ),
        ({"gone.away:Strategy": {}}, "not known, the strategy cannot be loaded here"),
    ],
)
def test_the_server_is_that_of_the_strategy(args: dict[str, Any], said: str) -> None:
    assert describe_server("SGD lr 1", args) == said


def test_header_and_protocol_name_flowers_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    settings: dict[str, Any] = {"target": "east", "trials": 1, "overrides": {"rounds": 1}, "out": Path("job")}
    job = plan_job(open_benchmark("Toy"), strategies=["fedadam"], strategy_args={"eta": 0.05}, **settings)
    assert header(job, engine="")["federation"] == "1 rounds, server FedAdam of Flower, by examples"
    said = whole_protocol(job, ["last round"])
    assert "server FedAdam of Flower, by examples, seeds 0" in said
    assert ", eta=0.05, " in said.partition("; fedadam ")[2]
    assert "Adam lr" not in said, "the optimizer of the recipe does nothing here"


@pytest.mark.parametrize(
    "options",
    ["--server-optimizer Adam", "--server-lr 0.5", "--server-optimizer-args nesterov=true", "--weighting domain"],
)
def test_an_option_without_effect_is_refused(options: str, command: Command) -> None:
    outcome = command(*TOY_OF_FLOWER, "--strategy", f"fedadam,{PATH}FedMedian", *options.split(), "--out", "job")
    assert outcome.status == 2
    option, wanted = options.partition(" ")[0], "expected a strategy that steps by the run's server optimizer"
    assert f"{option}: {wanted}, got 'fedadam', " in outcome.err
    assert f"'{PATH}FedMedian', a plain Flower strategy with a server of its own; leave the option out" in outcome.err
    assert not Path("job").exists()


def test_variants_without_effect_are_refused() -> None:
    require_server(["fedadam"], {"server_lr": None, "lr": 0.5}, [{"lr": 0.1}, {"eta": 0.1}])
    for key in ("server_lr", "server-optimizer-args.eps"):
        with pytest.raises(UsageError, match=f"--variants: {key}: expected a strategy that steps"):
            require_server(["fedadam"], {}, [{"lr": 0.1}, {key: 0.1}])


def test_variants_of_the_server_are_run_once_with_a_flower_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    job = plan_job(
        open_benchmark("Toy", options={"holdout": 0.25, "free": True}), strategies=["erm", "fedadam"], strategy_args={},
        target="east", trials=1, overrides={}, out=Path("job"),
        variants=[{"server_lr": 0.1}, {"server_lr": 0.2}, {"lr": 0.5, "server_optimizer_args.eps": 0.1}],
    )  # fmt: skip
    assert [(run.strategy, run.variant) for run in job.runs] == [
        *(("erm", 0), ("erm", 1), ("erm", 2), ("fedadam", 0), ("fedadam", 2)),
    ]


def test_a_run_config_without_effect_is_refused_by_the_server() -> None:
    given = CONFIG | {"strategy": "fedadam", "strategy-args": "eta=0.05"}
    resolved = settings_of_run(given).to_run_config()
    assert settings_of_run(resolved).strategy_args == {"eta": 0.05}, "a resolved run names every setting"
    with pytest.raises(UsageError, match="--server-lr: expected a strategy that steps by"):
        settings_of_run(given | {"server-lr": 0.5})
    assert settings_of_run(CONFIG | {"strategy": "erm", "server-lr": 0.5}).server_lr == 0.5
