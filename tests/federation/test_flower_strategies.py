"""A plain Flower strategy runs unchanged: it sees the source clients alone, and targets are evaluated around it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedhess.base.errors import FederationError, UsageError
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.server.checkpoint import flower_state

Run = Callable[..., Any]
PATH = "flwr.serverapp.strategy:"
seen_nodes: list[list[int]] = []
seen_targets: list[int] = []


class Nosy(FedAvg):
    """FedAvg that notes whom it can reach, and tries to reach one more."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        seen_nodes.append(list(grid.get_node_ids()))
        for node in seen_targets:
            with pytest.raises(PermissionError, match="reaches source clients only"):
                grid.push_messages([Message(RecordDict(), dst_node_id=node, message_type="query.statistics")])
            with pytest.raises(PermissionError, match="reaches source clients only"):
                list(grid.send_and_receive([Message(RecordDict(), dst_node_id=node, message_type="evaluate")]))
        return super().configure_train(server_round, arrays, config, grid)


class Nothing(FedAvg):
    """Aggregates nothing, as FedAvg does when every reply is an error."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


class Instructing(FedAvg):
    """Half a method: tells its clients what ours do not know."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["temperature"] = 2.0
        return super().configure_train(server_round, arrays, config, grid)


def test_a_strategy_whose_clients_would_have_to_do_more_is_refused(toy_run: Run) -> None:
    with pytest.raises(UsageError, match="round 1: Instructing sends its clients temperature, which they do not read"):
        toy_run(strategy="tests.federation.test_flower_strategies:Instructing")


def test_flowers_fedavg_is_erm(toy_run: Run) -> None:
    settings = {"local_steps": 3, "momentum": 0.9}
    ours = toy_run(strategy="erm", **settings).tensors
    theirs = toy_run(strategy=PATH + "FedAvg", **settings).tensors
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["FedAdam", "FedMedian"])
def test_fedadam_and_fedmedian_train(toy_run: Run, name: str) -> None:
    args = {"eta": 0.05} if name == "FedAdam" else {}
    rows = toy_run(strategy=PATH + name, strategy_args=args, rounds=12, local_steps=3, evaluate_every=6).rows
    accuracy = {n: [r["accuracy"] for r in rows if r["round"] == n and r["role"] == "source"] for n in (0, 12)}
    assert sum(accuracy[12]) > sum(accuracy[0]) + 0.5
    assert sum(1 for row in rows if row["role"] == "target" and row["accuracy"] is not None) == 3


def test_fedmedian_takes_the_median(toy_run: Run) -> None:
    mean = toy_run(strategy=PATH + "FedAvg", rounds=1).tensors
    median = toy_run(strategy=PATH + "FedMedian", rounds=1).tensors
    assert (mean["head.weight"] - median["head.weight"]).abs().max() > 1e-4


def test_a_flower_strategy_reaches_source_clients_only(toy_run: Run) -> None:
    seen_nodes.clear()
    seen_targets[:] = [44]
    toy_run(strategy="tests.federation.test_flower_strategies:Nosy", node_ids=[41, 42, 43, 44], rounds=1)
    assert seen_nodes == [[41, 42, 43]]


def test_node_ids_do_not_matter_to_a_flower_strategy(toy_run: Run) -> None:
    args = {"strategy": PATH + "FedAvg", "strategy_args": {"fraction_train": 0.7}, "dtype": "float32"}
    first, second = toy_run(**args), toy_run(node_ids=[9, 3, 8, 1], **args)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    trained = [row["domain"] for row in first.rows if row["train_loss"] is not None]
    assert len(trained) == 3 * 2  # two of three source clients a round


def test_aggregating_nothing_is_an_error_not_an_old_model(toy_run: Run) -> None:
    with pytest.raises(FederationError, match="Nothing aggregated nothing from 3 replies"):
        toy_run(strategy="tests.federation.test_flower_strategies:Nothing")


def test_fedadam_continues_from_a_checkpoint_with_the_same_bits(toy_run: Run, tmp_path: Path) -> None:
    args = {"strategy": PATH + "FedAdam", "strategy_args": {"eta": 0.05}, "dtype": "float32"}
    whole = toy_run(rounds=6, **args)
    toy_run(rounds=3, directory=tmp_path / "run", **args)
    resumed = toy_run(rounds=6, directory=tmp_path / "run", **args)
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    state, _ = flower_state(resumed.server.strategy)
    assert any(name.startswith("m_t/") for name in state)


def test_reply_order_does_not_matter_to_a_flower_strategy(toy_run: Run) -> None:
    class Backwards(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):  # type: ignore[override]
            return reversed(list(super().send_and_receive(messages, timeout=timeout)))

    def turned(grid: Grid) -> Grid:
        grid.__class__ = Backwards
        return grid

    args = {"strategy": PATH + "FedAvg", "dtype": "float32", "rounds": 4}
    forward, backward = toy_run(**args), toy_run(wrap=turned, **args)
    assert all(torch.equal(forward.tensors[name], backward.tensors[name]) for name in forward.tensors)
