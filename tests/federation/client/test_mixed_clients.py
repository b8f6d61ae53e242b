"""A client of several domains: what it says of itself, what it is asked, how it fails."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MetricRecord
from toy import SOURCES

from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from tests.promises.test_many_clients import MIXED, trained

Run = Callable[..., Any]


def test_a_mixed_client_that_fails_is_named_and_each_of_its_rows_is_null(toy_run: Run) -> None:
    class Broken:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.EVALUATE and context.node_config["partition-id"] == 1:
                raise OSError("gone")
            return client_app(message, context)

    rows = toy_run(app=Broken(), **MIXED, quorum=6, rounds=1).rows
    of_round = [row for row in rows if (row["round"], row["client"], row["role"]) == (1, 1, "source")]
    mine = [row for row in of_round if row.get("main_domain", row["domain"]) == "north"]
    assert [row["domain"] for row in mine] == list(SOURCES)
    assert all(row["accuracy"] is None for row in mine)
    assert [len(row["failures"]) for row in mine] == [1, 0, 0]
    assert "gone" in mine[0]["failures"][0]["reason"]


def test_a_reply_that_leaves_out_a_domain_is_a_failure_of_its_client(toy_run: Run) -> None:
    class Short:
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            name = protocol.of_domain(protocol.METRICS, "south")
            if context.node_config["partition-id"] == 0 and name in reply.content:
                reply.content[name] = MetricRecord({"loss": 1.0})
            return reply

    rows = toy_run(app=Short(), **MIXED, quorum=6, rounds=1).rows
    reasons = {failure["reason"] for row in rows for failure in row["failures"]}
    assert len(reasons) == 1
    assert "expected the metrics loss, accuracy, num-examples" in reasons.pop()


def test_fedavg_averages_clients_of_several_domains_by_examples(toy_run: Run) -> None:
    settings = {"batch_size": 0, "domains_options": {"uneven": True}} | MIXED | {"clients_per_round": 4}
    ours = toy_run(strategy="erm", weighting="examples", **settings)
    theirs = toy_run(strategy="flwr.serverapp.strategy:FedAvg", **settings)
    for name, value in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], value, rtol=0, atol=1e-12)
    assert [trained(ours.rows, number) for number in (1, 2)] == [trained(theirs.rows, number) for number in (1, 2)]


def test_a_flower_strategy_that_would_wait_for_ever_is_stopped(toy_run: Run) -> None:
    with pytest.raises(FederationError, match="FedAvg waits for min_available_nodes = 2 clients, 1 take part; give it"):
        toy_run(strategy="flwr.serverapp.strategy:FedAvg", clients_per_round=1)
