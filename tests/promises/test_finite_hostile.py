"""Finite but hostile numbers: who exceeds the bound is named and left out, and blame is checked."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from methods import METHODS
from misbehaving import Misbehaving, crash
from toy import FIVE, toy_config

from fedhess.alignment import Ask, DomainStrategy, Reference
from fedhess.base.errors import DivergedError, FederationError, StrategyError, UsageError
from fedhess.federation import protocol
from fedhess.federation.server.round import DomainRounds
from fedhess.settings.combinations import check_combinations

Run = Callable[..., Any]
ABSOLUTE = {"alpha": 0.02, "beta": 0.05, "scale": "absolute"}


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


@pytest.mark.parametrize(
    ("strategy", "first_round"),
    [("hgp", 1), ("hgp", 2), ("hutchinson", 1), ("fediir", 1), ("erm", 1), ("flwr.serverapp.strategy:FedAvg", 2)],
)
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
    assert "more than 50 is left out (--norm-bound)" in failures[0].reason
    without = toy_run(app=Misbehaving(message_type, crash, first_round=first_round), **settings)
    assert all(torch.equal(finished.tensors[name], without.tensors[name]) for name in without.tensors)


@pytest.mark.parametrize("norm_bound", [50.0, 0.0])
def test_with_quorum_1_statistics_out_of_scale_do_not_shut_the_honest_out(toy_run: Run, norm_bound: float) -> None:
    settings = {"strategy": "hgp", "strategy_args": ABSOLUTE, "quorum": 1, "rounds": 3, "norm_bound": norm_bound}
    finished = toy_run(app=scaled(protocol.STATISTICS, 1e90), local_steps=3, **settings)
    assert {failure.client for failure in finished.server.federation.ledger.failures} == {"south"}
    trained = {row["domain"] for row in finished.rows if row["round"] == 3 and row["train_loss"] is not None}
    assert trained == {"north", "west"}


@pytest.mark.parametrize("factor", [1e155, 1e250])
def test_numbers_whose_squares_overflow_end_no_run(toy_run: Run, factor: float) -> None:
    """Of a tensor of one number, as a binary head's bias is, not even the norm overflows."""
    settings = {"strategy": "erm", "domains_options": {"classes": 1}, "quorum": 2, "rounds": 2}
    finished = toy_run(app=scaled(protocol.TRAIN, factor), **settings)
    failures = finished.server.federation.ledger.failures
    assert [(failure.client, failure.round) for failure in failures] == [("south", 1), ("south", 2)]
    assert "update has norm" in failures[0].reason


@pytest.mark.parametrize("references", ["current", "previous"])
def test_blame_falls_on_the_one_without_whom_the_others_stay_finite(toy_run: Run, references: str) -> None:
    """No bound: the references themselves are out of scale, and the honest send NaN."""
    record = protocol.STATISTIC_VALUES

    def act(message: Message, reply: Message) -> Message:
        for name in [name for name in reply.content.array_records if record in name]:
            times(name, 1e150)(message, reply)
        return reply

    settings = {"strategy": "hgp", "strategy_args": ABSOLUTE, "norm_bound": 0.0, "rounds": 3, "references": references}
    finished = toy_run(app=Misbehaving("", act), quorum=2, **settings)
    failures = finished.server.federation.ledger.failures
    assert [(failure.client, failure.phase) for failure in failures] == [("south", "references")] * 3
    assert failures[0].reason.startswith("north, west sent values that are not finite with its statistics")
    with pytest.raises(FederationError, match=r"2 of 3 source clients .*\n  round 1, references, client south: north"):
        toy_run(app=Misbehaving("", act), **settings)


class Writes(DomainStrategy):
    """Writes to its state in place."""

    def reference(self, ask: Ask) -> Reference:
        self.state.setdefault("count", torch.zeros(())).add_(1)
        return {}


STATEFUL = {
    "fishr": METHODS["fishr"].args,
    "hgp+groupdro": {f"hgp_{name}": value for name, value in ABSOLUTE.items()},
}


@pytest.mark.parametrize("strategy", STATEFUL)
def test_a_round_is_undone_to_the_bit_without_a_copy_of_what_was_before(
    toy_run: Run, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """South's statistics ruin round 2: the run is the one in which south failed in that round."""
    settings = {
        "strategy": strategy,
        "strategy_args": STATEFUL[strategy],
        "norm_bound": 0.0,
        "rounds": 3,
        "quorum": 2,
        "local_steps": 3,
    }
    memory, remembered = DomainRounds._memory, []

    def observed(rounds: Any, federation: Any) -> Any:
        found, state = memory(rounds, federation), rounds.state()[0]
        assert all(found[0][0][name] is tensor for name, tensor in state.items())
        remembered.append(len(state))
        return found

    monkeypatch.setattr(DomainRounds, "_memory", observed)

    def only_in_round_2(act: Callable[[Message, Message], Message]) -> Misbehaving:
        def acting(message: Message, reply: Message) -> Message:
            now = message.content.config_records[protocol.CONFIG][protocol.ROUND]
            return act(message, reply) if now == 2 else reply

        return Misbehaving(protocol.STATISTICS, acting)

    blamed = toy_run(app=only_in_round_2(times(protocol.STATISTIC_VALUES, 1e300)), **settings)
    assert [(f.round, f.phase, f.client) for f in blamed.server.federation.ledger.failures] == [
        (2, "references", "south")
    ]
    assert len(remembered) == 4, "before each round, and after the one that was undone"
    assert remembered[0] < remembered[1]
    without = toy_run(app=only_in_round_2(crash), **settings)
    assert_same(blamed.tensors, without.tensors)
    assert_same(blamed.server.strategy.state_dict(), without.server.strategy.state_dict())


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_strategy_that_writes_to_its_state_is_told_to_replace_it(toy_run: Run) -> None:
    with pytest.raises(
        StrategyError, match=r"Writes' wrote to a tensor of its state, 'count'.*self.state\[name\] = new"
    ):
        toy_run(strategy=f"{__name__}:Writes")


def test_a_client_that_fails_by_itself_is_to_blame_also_where_another_is_suspect(toy_run: Run) -> None:
    """North's statistics outweigh the others', but south sends NaN without them too."""

    def act(message: Message, reply: Message) -> Message:
        key = {protocol.STATISTICS: protocol.STATISTIC_VALUES, protocol.TRAIN: protocol.MODEL}
        kind = message.metadata.message_type
        if kind == protocol.STATISTICS:
            return times(key[kind], 5.0)(message, reply) if partition(message) == 0 else reply
        return times(key[kind], float("nan"))(message, reply) if partition(message) == 1 else reply

    def partition(message: Message) -> int:
        return message.metadata.dst_node_id - 1001

    settings = {"strategy": "fishr", "strategy_args": METHODS["fishr"].args, "quorum": 2, "rounds": 2}
    app = Misbehaving("", act, partitions=(0, 1))
    finished = toy_run(app=app, evaluate_every=2, **settings)
    failures = finished.server.federation.ledger.failures
    assert {(failure.client, failure.phase) for failure in failures if failure.phase == "train"} == {("south", "train")}
    straight = finished.server.strategy.state_dict()
    assert set(straight) == {"north", "south", "west"}, "the state is that of the round that counted"


def test_most_of_the_clients_are_never_the_culprits(toy_run: Run) -> None:
    app = scaled(protocol.TRAIN, float("nan"), partitions=(0, 1))
    with pytest.raises(DivergedError, match="2 of 3 source clients sent values that are not finite in phase 'train'"):
        toy_run(app=app, quorum=1)


@pytest.mark.parametrize("quorum", [0, 1])
def test_of_two_honest_clients_that_diverge_none_is_the_culprit(toy_run: Run, quorum: int) -> None:
    settings = {"strategy": "hgp", "strategy_args": {"alpha": 1e5, "beta": 1e5, "scale": "absolute"}, "local_steps": 12}
    with pytest.raises(DivergedError, match="1 of 2 source clients sent values that are not finite in phase 'train'"):
        toy_run(sources=("north", "south"), quorum=quorum, **settings)


def test_a_resumed_run_judges_by_the_medians_of_the_run_before(toy_run: Run, tmp_path: Path) -> None:
    """With two clients a round's own median says nothing: only the checkpoint's names the hostile one."""
    settings = {"sources": ("north", "south"), "quorum": 1, "rounds": 4}
    app = scaled(protocol.TRAIN, 1e6, first_round=3)
    straight = toy_run(app=app, **settings)
    toy_run(directory=tmp_path, app=app, **settings | {"rounds": 2})
    resumed = toy_run(directory=tmp_path, app=app, **settings)
    failures = resumed.server.federation.ledger.failures
    assert [(failure.client, failure.round) for failure in failures] == [("south", 3), ("south", 4)]
    assert all(torch.equal(straight.tensors[name], resumed.tensors[name]) for name in straight.tensors)


# What is robust, which messages it averages, and arguments with which the mean of these messages matters.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "update_mean": (protocol.TRAIN, {}),
    "reference_mean": (protocol.STATISTICS, {"alpha": 0.0, "beta": 0.5, "scale": "absolute"}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_robust_means_take_a_run_through_what_the_bound_lets_pass(toy_run: Run, option: str) -> None:
    message_type, args = OPTIONS[option]

    def loss(mean: str, **app: Any) -> float:
        settings = {option: mean, "strategy_args": args, "rounds": 6, "evaluate_every": 6}
        rows = toy_run(strategy="hgp", **settings, **app).rows
        return sum(row["train_loss"] for row in rows if row["round"] == 6 and row["train_loss"] is not None)

    hostile = {"app": scaled(message_type, -10.0)}
    honest, fooled = loss("mean"), loss("mean", **hostile)
    for kind in ("median", "trimmed", "geometric"):
        assert loss(kind, **hostile) < min(fooled / 1.5, 1.5 * honest), kind


@pytest.mark.parametrize("option", OPTIONS)
def test_the_number_of_hostile_clients_is_how_many_are_trimmed_away(toy_run: Run, option: str) -> None:
    """Two at either end of five leave the median, one does not."""

    def trained(mean: str, hostile: int) -> dict[str, torch.Tensor]:
        settings = {option: mean, "hostile_clients": hostile, "sources": FIVE, "domains_options": {"six": True}}
        return toy_run(strategy="hgp", strategy_args=ABSOLUTE, **settings).tensors

    median = trained("median", 2)
    assert_same(trained("trimmed", 2), median)
    assert any(not torch.equal(value, median[name]) for name, value in trained("trimmed", 1).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update_mean": "krum", "hostile_clients": 2}, "--update-mean krum: expected at least 5 clients in a round"),
        ({"update_mean": "trimmed", "hostile_clients": 2}, "expected at least 5 clients in a round, so that the hos"),
        ({"update_mean": "median", "clients_per_round": 2}, "expected at least 3 clients in a round"),
        ({"reference_mean": "median", "sources": ("north", "south")}, "expected at least 3 source domains"),
    ],
)
def test_means_without_a_majority_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_combinations([toy_config(**changes)])


def test_an_update_turned_round_is_not_named(toy_run: Run) -> None:
    """What docs/threats.md says is not defended."""
    finished = toy_run(app=scaled(protocol.TRAIN, -1.0), update_mean="median")
    assert finished.server.federation.ledger.failures == []
