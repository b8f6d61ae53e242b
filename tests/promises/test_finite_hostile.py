"""Finite but hostile numbers: who exceeds the bound is named and left out, and blame is checked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from misbehaving import Misbehaving

from fedhess.federation import protocol

Run = Callable[..., Any]


def times(key: str, factor: float) -> Callable[[Message, Message], Message]:
    """Scale what a reply holds of an array record."""

    def act(message: Message, reply: Message) -> Message:
        arrays = reply.content.array_records[key].items()
        reply.content[key] = ArrayRecord({name: Array(np.asarray(array.numpy() * factor)) for name, array in arrays})
        return reply

    return act


def scaled(message_type: str, factor: float, **more: Any) -> Misbehaving:
    keys = {protocol.STATISTICS: protocol.STATISTIC_VALUES, protocol.TRAIN: protocol.MODEL}
    return Misbehaving(message_type, times(keys[message_type], factor), **more)


@pytest.mark.parametrize("strategy", ["hgp", "hutchinson", "fediir", "erm", "flwr.serverapp.strategy:FedAvg"])
@pytest.mark.parametrize("first_round", [1, 2])
def test_who_exceeds_the_bound_is_named_and_the_others_train_as_if_it_were_not_there(
    toy_run: Run, strategy: str, first_round: int
) -> None:
    """In the first round, when only the clients themselves can be compared, and later."""
    message_type = protocol.STATISTICS if strategy in ("hgp", "hutchinson", "fediir") else protocol.TRAIN
    settings = {"strategy": strategy, "rounds": 2, "quorum": 2}
    app = scaled(message_type, 1e6, first_round=first_round)
    finished = toy_run(app=app, **settings)
    failures = finished.server.federation.ledger.failures
    assert [(failure.client, failure.round) for failure in failures] == [("south", n) for n in range(first_round, 3)]
    assert "the median" in failures[0].reason
    assert "more than 100 is left out (--norm-bound)" in failures[0].reason

    def crash(message: Message, reply: Message) -> Message:
        raise OSError("gone")

    without = toy_run(app=Misbehaving(message_type, crash, first_round=first_round), **settings)
    assert all(torch.equal(finished.tensors[name], without.tensors[name]) for name in without.tensors)


@pytest.mark.parametrize("norm_bound", [100.0, 0.0])
def test_with_quorum_1_statistics_out_of_scale_do_not_shut_the_honest_out(toy_run: Run, norm_bound: float) -> None:
    args = {"alpha": 0.02, "beta": 0.05, "scale": "absolute"}
    settings = {"strategy": "hgp", "strategy_args": args, "quorum": 1, "rounds": 3, "norm_bound": norm_bound}
    finished = toy_run(app=scaled(protocol.STATISTICS, 1e90), local_steps=3, **settings)
    assert {failure.client for failure in finished.server.federation.ledger.failures} == {"south"}
    trained = {row["domain"] for row in finished.rows if row["round"] == 3 and row["train_loss"] is not None}
    assert trained == {"north", "west"}
