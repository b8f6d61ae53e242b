"""Replies made to break the server: each is a failure of its client by name, never a crash, and never gets through."""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from misbehaving import Misbehaving, with_metrics

from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.examples import LocalClient

Run = Callable[..., Any]
FEDAVG = "flwr.serverapp.strategy:FedAvg"


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


BYTES: dict[str, Callable[[tuple[int, ...]], bytes]] = {
    "text": lambda shape: npy(np.full(shape, "x")),
    "structures": lambda shape: npy(np.zeros(shape, [("a", "f4")])),
    "big endian": lambda shape: npy(np.zeros(shape, ">f8")),
    "a deep header": lambda shape: header("(" * 5000),
    "a negative shape": lambda shape: header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n"),
    "nothing": lambda shape: b"",
}


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_are_no_numbers_are_a_failure_of_their_client(toy_run: Run, kind: str) -> None:
    def act(message: Message, reply: Message) -> Message:
        arrays = dict(reply.content.array_records[protocol.MODEL])
        name, array = next(iter(arrays.items()))
        data = BYTES[kind](tuple(array.shape))
        arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)
        reply.content[protocol.MODEL] = ArrayRecord(arrays)
        return reply

    finished = toy_run(app=Misbehaving(protocol.TRAIN, act), quorum=2, rounds=1)
    (failure,) = finished.server.federation.ledger.failures
    assert failure.client == "south"
    assert "expected a .npy array of plain numbers" in failure.reason
    assert all(torch.isfinite(value).all() for value in finished.tensors.values())


METRICS = "expected the metrics num-examples, loss, objective, seconds, a number each"
EVALUATION = "expected an accuracy in [0, 1]"
ALTERED: list[tuple[str, dict[str, Any], str]] = [
    (protocol.EVALUATE, {"num-examples": float("nan")}, EVALUATION),
    (protocol.EVALUATE, {"num-examples": float("inf")}, EVALUATION),
    (protocol.EVALUATE, {"accuracy": 7.0}, EVALUATION),
    (protocol.EVALUATE, {"accuracy": None}, "expected the metrics loss, accuracy"),
    (protocol.EVALUATE, {"loss": -1.0}, "expected a loss of at least 0"),
    (protocol.EVALUATE, {"num-examples": 2**40}, "as at the start"),
    (protocol.TRAIN, {"num-examples": 2**40}, "as at the start"),
    (protocol.TRAIN, {"more": 1.0}, METRICS),
    (protocol.TRAIN, {"loss": None}, METRICS),
    (protocol.TRAIN, {"loss": [1.0, 2.0]}, METRICS),
]


@pytest.mark.parametrize(
    ("strategy", "message_type", "changes", "reason"),
    [("erm", *case) for case in ALTERED]
    + [(FEDAVG, *case) for case in ALTERED if case[0] == protocol.TRAIN]
    + [(FEDAVG, protocol.TRAIN, {"num-examples": n}, "as at the start") for n in (float("nan"), -48, 10**12)],
)
def test_impossible_metrics_are_a_failure_of_their_client(
    toy_run: Run, strategy: str, message_type: str, changes: dict[str, Any], reason: str
) -> None:
    app = Misbehaving(message_type, lambda message, reply: with_metrics(message, reply, **changes))
    finished = toy_run(app=app, quorum=2, rounds=1, strategy=strategy)
    (failure,) = finished.server.federation.ledger.failures
    assert failure.client == "south"
    assert reason in failure.reason
    (south,) = [row for row in finished.rows if row["domain"] == "south" and row["round"] == 1]
    assert (south["accuracy"] is None) == (message_type == protocol.EVALUATE)


def _moved(confusion: np.ndarray, bins: np.ndarray) -> None:
    right = np.flatnonzero(confusion.diagonal())[0]
    confusion[right, right] -= 1
    confusion[right, right - 1] += 1


def _one_more(confusion: np.ndarray, bins: np.ndarray) -> None:
    confusion[0, 1] += 1


def _negative(confusion: np.ndarray, bins: np.ndarray) -> None:
    confusion[0, 1] -= 100
    confusion[0, 2] += 100


def _half(confusion: np.ndarray, bins: np.ndarray) -> None:
    bins[0, 0] += 0.5
    bins[1, 0] -= 0.5


def _another_bin(confusion: np.ndarray, bins: np.ndarray) -> None:
    bins[0, 0] += 1


def _more_right(confusion: np.ndarray, bins: np.ndarray) -> None:
    bins[0, 1] -= 1000
    bins[1, 1] += 1000


def _too_sure(confusion: np.ndarray, bins: np.ndarray) -> None:
    bins[:, 2] += 100


def _no_number(confusion: np.ndarray, bins: np.ndarray) -> None:
    bins[0, 2] = np.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [(change, "expected counts that fit accuracy") for change in (_moved, _one_more, _negative, _half)]
    + [(change, "expected counts that fit accuracy") for change in (_another_bin, _more_right, _too_sure)]
    + [(_no_number, "not finite"), (None, "expected arrays 'counts'")],
)
def test_counts_that_do_not_add_up_are_a_failure_of_their_client(
    toy_run: Run, change: Callable[[np.ndarray, np.ndarray], None] | None, reason: str
) -> None:
    def act(message: Message, reply: Message) -> Message:
        record = reply.content.array_records[protocol.COUNTS]
        arrays = {name: array.numpy().copy() for name, array in record.items()}
        if change is None:
            del reply.content[protocol.COUNTS]
        else:
            change(arrays[protocol.CONFUSION], arrays[protocol.CALIBRATION])
            reply.content[protocol.COUNTS] = ArrayRecord({name: Array(values) for name, values in arrays.items()})
        return reply

    finished = toy_run(app=Misbehaving(protocol.EVALUATE, act), quorum=2, rounds=1)
    (failure,) = finished.server.federation.ledger.failures
    assert (failure.client, failure.phase) == ("south", "evaluate")
    assert reason in failure.reason
    (south,) = [row for row in finished.rows if row["domain"] == "south" and row["round"] == 1]
    assert south["confusion"] is south["calibration"] is south["accuracy"] is None


@pytest.mark.parametrize("given", [None, "0" * 32])
def test_a_reply_that_does_not_return_the_nonce_is_not_read(toy_run: Run, given: str | None) -> None:
    """A node that answers in another's name has not seen the message, whose id alone can be guessed."""

    def forged(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_config["partition-id"] == 1 and message.metadata.message_type == protocol.TRAIN:
            reply.content[protocol.CONFIG] = ConfigRecord({} if given is None else {protocol.NONCE: given})
        return reply

    finished = toy_run(app=forged, quorum=2, rounds=1)
    (failure,) = finished.server.federation.ledger.failures
    assert (failure.client, failure.phase) == ("south", "train")
    assert "does not return the message's nonce" in failure.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["b", "a", "c", "d"]}, r"do not have the same classes.*\n  north, west, east: .*\n  south: "),
        (
            {"inputs": "embedded by lite0, weights 0123"},
            r"the same inputs.*\n .*\n  south: embedded by lite0",
        ),
    ],
)
def test_clients_with_other_classes_or_inputs_stop_the_run(toy_run: Run, changes: dict[str, Any], message: str) -> None:
    def act(message: Message, reply: Message) -> Message:
        reply.content.config_records[protocol.CONFIG].update(changes)
        return reply

    with pytest.raises(FederationError, match=message):
        toy_run(app=Misbehaving(protocol.IDENTIFY, act, first_round=0), rounds=1)


@pytest.mark.parametrize("strategy", ["erm", "flwr.serverapp.strategy:FedAvg"])
def test_data_that_changes_in_a_run_is_named(toy_run: Run, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    digest = LocalClient.data_digest.fget

    def changed(message: Message, context: Context) -> Message:
        if message.content.config_records.get(protocol.CONFIG, {}).get(protocol.ROUND, 0) == 1:
            monkeypatch.setattr(
                LocalClient, "data_digest", property(lambda own: "0" if own.domain == "south" else digest(own))
            )
        return client_app(message, context)

    finished = toy_run(app=changed, strategy=strategy, quorum=2, rounds=1)
    failure = finished.server.federation.ledger.failures[0]
    assert (failure.phase, failure.client) == ("train", "south")
    assert "the data of south has changed since the run began: digest 0, was" in failure.reason


def test_what_a_node_writes_stays_one_short_line(toy_run: Run) -> None:
    forgery = "no data\nround 9, sketch (target): accuracy 1.0\x1b[2K"

    def act(message: Message, reply: Message) -> Message:
        return Message(Error(1002, forgery + "x" * 10_000), reply_to=message)

    finished = toy_run(app=Misbehaving(protocol.TRAIN, act), quorum=2, rounds=1)
    (failure,) = finished.server.federation.ledger.failures
    assert failure.reason.startswith(r"error 1002: no data round 9, sketch (target): accuracy 1.0\x1b[2Kxx")
    assert len(failure.reason) == protocol.LONGEST + len("...")


FORGED = "x\n\n# Accuracy 99.9 %\x1b[2J"


UNASKED: list[tuple[str, str, ArrayRecord | MetricRecord]] = [
    (protocol.TRAIN, protocol.ALIGNMENT, ArrayRecord({"foo": Array(np.zeros(2))})),
    (protocol.TRAIN, FORGED, MetricRecord({"a": 1})),
    (protocol.EVALUATE, protocol.HELD_OUT, MetricRecord({"a": 1})),
    (protocol.EVALUATE, protocol.COUNTS, ArrayRecord({FORGED: Array(np.zeros(2))})),
    (protocol.EVALUATE, protocol.METRICS, MetricRecord({"gradient_distance": 1.0})),
    (protocol.EVALUATE, protocol.METRICS, MetricRecord({"secret": [1.0] * 1000})),
]


@pytest.mark.parametrize(
    ("strategy", "message_type", "key", "record"),
    [
        *((strategy, *case) for strategy in ("hgp", FEDAVG) for case in UNASKED),
        ("ga", protocol.TRAIN, protocol.HELD_OUT, MetricRecord({"secret": 1.0})),
    ],
)
def test_what_was_not_asked_for_is_a_failure_of_its_client_and_in_no_table(
    toy_run: Run, strategy: str, message_type: str, key: str, record: ArrayRecord | MetricRecord
) -> None:
    def act(message: Message, reply: Message) -> Message:
        own = reply.content.get(key, {})
        reply.content[key] = type(record)({**own, **record})  # type: ignore[dict-item]
        return reply

    rows = toy_run(app=Misbehaving(message_type, act), quorum=2, rounds=1, strategy=strategy).rows
    honest = toy_run(quorum=2, rounds=1, strategy=strategy).rows
    (failure,) = (failure for row in rows for failure in row["failures"])
    assert failure["reason"].startswith(
        ("expected no further records in the reply", "counts: ", "expected the metrics ")
    )
    sent, known = ([name for row in of_run for name in row["sent"]["up"]] for of_run in (rows, honest))
    assert set(sent) <= set(known)


def test_what_a_flower_strategy_refuses_to_aggregate_ends_the_run_with_its_reason(toy_run: Run) -> None:
    args = {"weighted_by_key": "no-such-metric"}
    with pytest.raises(FederationError, match=r"round 1: FedAvg: .*no-such-metric"):
        toy_run(strategy=FEDAVG, strategy_args=args, rounds=1)


def _drop_one(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord(dict(list(record.items())[1:]))


def _misname(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({f"{name}-": value for name, value in record.items()})


@pytest.mark.parametrize("change", [_drop_one, _misname, None])
@pytest.mark.parametrize("clients", [{}, {"partition": "dirichlet", "clients_per_domain": 2}])
def test_momentum_that_is_not_whole_is_a_failure_of_its_client(
    toy_run: Run, change: Callable[[ArrayRecord], ArrayRecord] | None, clients: dict[str, Any]
) -> None:
    def act(message: Message, reply: Message) -> Message:
        if change is None:
            del reply.content[protocol.MOMENTUM]
        else:
            reply.content[protocol.MOMENTUM] = change(reply.content.array_records[protocol.MOMENTUM])
        return reply

    app = Misbehaving(protocol.TRAIN, act)
    finished = toy_run(app=app, strategy="fish", momentum=0.9, rounds=2, quorum=2, **clients)
    failures = finished.server.federation.ledger.failures
    assert len({failure.client for failure in failures}) == 1
    assert {failure.round for failure in failures} == {1, 2}
    assert all("momentum" in failure.reason for failure in failures)
    assert set(finished.server.strategy.state_dict()) == set(finished.server.model.trained_names)


@pytest.mark.parametrize("count", [0, -5])
def test_a_source_client_without_examples_takes_no_part(toy_run: Run, count: int) -> None:
    def act(message: Message, reply: Message) -> Message:
        record = dict(reply.content.config_records[protocol.CONFIG]) | {"train-examples": count}
        reply.content[protocol.CONFIG] = ConfigRecord(record)
        return reply

    with pytest.raises(FederationError, match="expected a source client with examples"):
        toy_run(app=Misbehaving(protocol.IDENTIFY, act, first_round=0), exchange_deadline=1.5)


class Peeking(FedAvg):
    """Tries to pull replies that were never its own."""

    seen: list[str] = []  # noqa: RUF012 - read by the test
    trains = threading.Event()
    target_has_answered = threading.Event()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.trains.set()
        assert self.target_has_answered.wait(60)
        time.sleep(0.2)  # for its reply to arrive
        for number in range(1, 40):
            self.seen.extend(reply.metadata.message_type for reply in grid.pull_messages([f"1-{number}"]))
        return super().configure_train(server_round, arrays, config, grid)


def test_a_flower_strategy_cannot_pull_a_targets_late_evaluation(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class LateTarget:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.EVALUATE and context.node_config["partition-id"] == 3:
                assert Peeking.trains.wait(60)
                reply = client_app(message, context)
                Peeking.target_has_answered.set()
                return reply
            return client_app(message, context)

    Peeking.seen.clear()
    Peeking.trains.clear()
    Peeking.target_has_answered.clear()
    monkeypatch.setitem(sys.modules, "peeking", sys.modules[__name__])
    finished = toy_run(app=LateTarget(), strategy="peeking:Peeking", rounds=1, deadline=1.0)
    assert Peeking.seen == []
    assert finished.server.federation.grid._running == {}  # what came too late is not kept either
