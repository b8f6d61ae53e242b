"""A target answers one evaluation a round, and its node rounds its counts or adds noise whatever the run says."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from federations import Finished
from flwr.app import ConfigRecord, Context, Message, RecordDict
from toy import toy_config

from fedhess.base.errors import FederationError, UsageError
from fedhess.base.tables import notes
from fedhess.deploy.settings import check_node_config
from fedhess.federation import protocol
from fedhess.federation.client.answers import Protection, answer_once, two_sided_geometric
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.evaluation import Evaluation
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.server.global_model import GlobalModel
from fedhess.models.building import build_model
from fedhess.results.counts import calibration_error
from fedhess.results.sent import protected_targets, summarise_sent

Run = Callable[..., Finished]

TARGET_NODE = 3


class Configured:
    """The client app on nodes of which one has further settings of its own."""

    def __init__(self, partition: int, **settings: Any) -> None:
        self._partition = partition
        self._settings = {key.replace("_", "-"): value for key, value in settings.items()}

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == self._partition:
            context.node_config.update(self._settings)
        return client_app(message, context)


# -- One answer a round ------------------------------------------------------------------------------------------------


@pytest.fixture
def ask() -> Iterator[Callable[..., Message]]:
    config = toy_config(rounds=2)
    nodes: Mapping[int, Any] = {TARGET_NODE: {"partition-id": 3, "num-partitions": 4}}
    payload = GlobalModel(build_model(config), optimizer_args=None).payload()
    grid = InProcessGrid(client_app, node_configs=nodes, run_config=config.to_run_config())

    def evaluate(server_round: int, *, model_id: str = payload.model_id, send_model: bool = True) -> Message:
        settings = ConfigRecord({protocol.MODEL_ID: model_id, protocol.ROUND: server_round})
        content = RecordDict({protocol.MODEL: payload.arrays} if send_model else {})
        content[protocol.CONFIG] = settings
        message = Message(content, dst_node_id=TARGET_NODE, message_type=protocol.EVALUATE)
        (reply,) = grid.send_and_receive([message], timeout=60)
        return reply

    with run_identity(1):
        yield evaluate
    grid.close()


@pytest.mark.parametrize("again", [1, 0, 3, -1])
def test_a_second_question_of_a_round_is_refused_whatever_model_it_is_about(
    ask: Callable[..., Message], again: int
) -> None:
    assert ask(1).has_content()
    refused = ask(again, model_id="crafted")
    assert refused.error.code == protocol.BAD_REQUEST
    assert refused.error.reason == (
        f"a target evaluates one model a round, in order, in rounds 0 to 2: got round {again} after 1"
    )
    assert ask(2).has_content()


def test_a_message_whose_model_is_lost_uses_up_no_answer(ask: Callable[..., Message]) -> None:
    lost = ask(1, model_id="not here", send_model=False)
    assert lost.content.config_records[protocol.CONFIG][protocol.MODEL_MISSING] is True
    assert protocol.METRICS in ask(1, model_id="not here").content


def test_another_run_begins_anew_in_what_flower_keeps_for_a_series() -> None:
    state = RecordDict()
    first, second = (Context(run_id, 1, {}, state, {}) for run_id in (1, 2))
    answer_once(first, 5, rounds=9)
    answer_once(second, 0, rounds=9)
    with pytest.raises(UsageError, match="got round 0 after 0"):
        answer_once(second, 0, rounds=9)


# -- Rounding and noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_noise_is_two_sided_geometric(epsilon: float) -> None:
    draws = two_sided_geometric((200_000,), epsilon)
    ratio = math.exp(-epsilon / 2)
    most_likely = (1 - ratio) / (1 + ratio)
    for value in (-2, -1, 0, 1, 2):
        share, expected = float((draws == value).double().mean()), most_likely * ratio ** abs(value)
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / 200_000))
    variance = 2 * ratio / (1 - ratio) ** 2
    assert float(draws.double().var()) == pytest.approx(variance, rel=0.05)


def test_no_output_tells_neighbours_apart_by_more_than_epsilon() -> None:
    # Of two classes: one example is of the other class. Outcomes of all cells together, before they are cut off.
    epsilon, draws = 1.0, 400_000
    here, there = torch.tensor([3, 2]), torch.tensor([2, 3])
    seen = [two_sided_geometric((draws, 2), epsilon) + counts for counts in (here, there)]
    for outcome in ([3, 2], [2, 3], [4, 1], [2, 2]):
        a, b = (float((each == torch.tensor(outcome)).all(1).double().mean()) for each in seen)
        assert abs(math.log(a / b)) <= epsilon + 6 * math.sqrt(1 / (draws * a) + 1 / (draws * b))


def test_noise_is_not_drawn_from_seeds_that_the_server_knows() -> None:
    torch.manual_seed(0)
    first = two_sided_geometric((50,), 0.1)
    torch.manual_seed(0)
    assert not torch.equal(first, two_sided_geometric((50,), 0.1))


def test_counts_are_rounded_to_the_nearest_multiple_and_the_accuracy_follows() -> None:
    counts = torch.tensor([[37, 4], [15, 44]], dtype=torch.int32)
    result = Protection(rounding=10).apply(Evaluation(0.5, 0.81, 100, {"confusion": counts, "calibration": counts}))
    assert result.counts["confusion"].tolist() == [[40, 0], [20, 40]]
    assert list(result.counts) == ["confusion"]
    assert (result.accuracy, math.isnan(result.loss)) == (0.8, True)


def test_a_run_goes_on_with_a_protected_target_and_trains_alike(toy_run: Run) -> None:
    class Guessed(Configured):
        """The server guesses the digest of the data."""

        def __call__(self, message: Message, context: Context) -> Message:
            if protocol.ROUND in message.content[protocol.CONFIG] and context.node_config["partition-id"] == 3:
                message.content.config_records[protocol.CONFIG][protocol.DATA_DIGEST] = "guess"
            return super().__call__(message, context)

    plain = toy_run()
    finished = toy_run(app=Guessed(3, evaluation_rounding=8, evaluation_epsilon=2))
    digests = {client.label: client.identity.data_digest for client in finished.server.federation.clients}
    assert [label for label, digest in digests.items() if not digest] == ["east"]
    assert all(torch.equal(plain.tensors[name], finished.tensors[name]) for name in plain.tensors)
    rows = [row for row in finished.rows if row["role"] == "target"]
    assert len(rows) == 4
    for row in rows:
        assert (row["loss"], row["calibration"], row["failures"]) == (None, None, [])
        assert (row["evaluation_rounding"], row["evaluation_epsilon"]) == (8, 2.0)
        assert all(count % 8 == 0 for _, _, count in row["confusion"])
        assert row["accuracy"] == min(1.0, sum(n for label, guess, n in row["confusion"] if label == guess) / 48)
        assert calibration_error(row["calibration"] or ()) is None
    exact = [row for row in plain.rows if row["role"] == "target"]
    assert [row["confusion"] for row in rows] != [row["confusion"] for row in exact]
    run: Any = SimpleNamespace(strategy="erm", config=finished.server.config)
    disclosed = {
        each["record"]: each["discloses"]
        for each in summarise_sent([(run, [*plain.rows, *finished.rows])])
        if each["from"] == "protected target clients"
    }
    assert len(disclosed) == 3
    assert not [text for text in disclosed.values() if re.search("digest|loss|confident", text)]
    (line,) = protected_targets([(run, finished.rows)])
    assert line == "east: multiples of 8, 2 in each of 4 evaluations, 8 in all"
    assert protected_targets([(run, plain.rows)]) == []
    assert f"- {line}" in notes({"strategies": {}, "arguments": {}, "protected": [line]})


def test_both_splits_of_a_target_are_protected(toy_run: Run) -> None:
    settings: dict[str, Any] = {"split": "every", "domains_options": {"holdout": 0.25}, "rounds": 1}
    rows = toy_run(app=Configured(3, evaluation_rounding=5), **settings).rows
    of_target = [row for row in rows if row["role"] == "target"]
    assert {row["split"] for row in of_target} == {"in", "out"}
    assert all(count % 5 == 0 for row in of_target for _, _, count in row["confusion"])
    run: Any = None
    assert protected_targets([(run, rows)]) == ["east: multiples of 5, no noise"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation_rounding": 0}, "evaluation-rounding: expected a whole number from 1, got 0"),
        ({"evaluation_epsilon": 0.0}, "evaluation-epsilon: expected a number above 0, got 0.0"),
        ({"evaluation_epsilon": "some"}, "evaluation-epsilon: expected a number above 0, got 'some'"),
    ],
)
def test_settings_out_of_range_stop_the_run_and_the_nodes_command(
    toy_run: Run, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FederationError, match=message):
        toy_run(app=Configured(3, **settings), exchange_deadline=0.5)
    given = " ".join(f"{key.replace('_', '-')}={value!r}" for key, value in settings.items())
    with pytest.raises(UsageError, match=message):
        check_node_config(given, {"role": "target", "domain": "east"})


def test_a_source_whose_operator_wants_its_evaluation_protected_is_refused(toy_run: Run) -> None:
    with pytest.raises(FederationError, match="only a target's evaluation is protected, and this node is a source"):
        toy_run(app=Configured(0, evaluation_epsilon=1.0), exchange_deadline=0.5)


def test_protected_counts_that_contradict_the_accuracy_are_a_failure_of_the_client(toy_run: Run) -> None:
    class Boasting(Configured):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = super().__call__(message, context)
            if message.metadata.message_type == "evaluate" and context.node_config["partition-id"] == 3:
                reply.content.metric_records[protocol.METRICS]["accuracy"] = 1.0
            return reply

    rows = toy_run(app=Boasting(3, evaluation_rounding=4), rounds=1).rows
    (failure,) = rows[-1]["failures"]
    assert failure["reason"].startswith("counts: expected counts that fit accuracy 1, got ")
