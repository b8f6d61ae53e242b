"""Promise 4: a target client answers evaluate and nothing else, and discloses nothing but loss, accuracy and counts."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from toy import toy_config

from fedhess.federation import protocol
from fedhess.federation.client.app import app
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.server.global_model import GlobalModel
from fedhess.models.building import build_model
from fedhess.settings.run_config import RunConfig

SOURCE_NODE, TARGET_NODE, STUBBORN_NODE = 2, 3, 4


@pytest.fixture
def config() -> RunConfig:
    return toy_config(strategy="hgp", strategy_args={"scale": "absolute"})


@pytest.fixture
def grid(config: RunConfig) -> Iterator[InProcessGrid]:
    nodes = {
        SOURCE_NODE: {"partition-id": 0, "num-partitions": 4},
        TARGET_NODE: {"partition-id": 3, "num-partitions": 4},
        # A node that its owner declared a target, in a run whose configuration has its domain among the sources.
        STUBBORN_NODE: {"domain": "south", "role": "target"},
    }
    made = InProcessGrid(app, node_configs=nodes, run_config=config.to_run_config())
    with run_identity(1):
        yield made
    made.close()


def request(config: RunConfig, *, names: list[str]) -> RecordDict:
    payload = GlobalModel(build_model(config), optimizer_args=None).payload()
    settings = {protocol.MODEL_ID: payload.model_id, protocol.ROUND: 1, protocol.NAMES: names}
    return RecordDict({protocol.MODEL: payload.arrays, protocol.CONFIG: ConfigRecord(settings)})


def send(grid: InProcessGrid, message_type: str, node: int, content: RecordDict) -> Message:
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=message_type)], timeout=60)
    return reply


@pytest.mark.parametrize(
    "message_type", ["train", "query.statistics", "query", "query.anything", "train.anything", "train.statistics"]
)
@pytest.mark.parametrize("node", [TARGET_NODE, STUBBORN_NODE])
def test_a_target_client_refuses_everything_but_evaluate(
    grid: InProcessGrid, config: RunConfig, message_type: str, node: int
) -> None:
    reply = send(grid, message_type, node, request(config, names=["gradient"]))
    assert reply.has_error()
    if message_type in ("train", "query.statistics"):  # the actions that exist; Flower itself refuses the others
        assert reply.error.code == protocol.REFUSED_BY_TARGET
        assert "is a target domain" in str(reply.error.reason)


def test_the_same_messages_are_answered_by_a_source_client(grid: InProcessGrid, config: RunConfig) -> None:
    asked = send(grid, "query.statistics", SOURCE_NODE, request(config, names=["gradient", "hgp"]))
    assert sorted(asked.content[protocol.STATISTIC_VALUES]) == ["gradient", "hgp"]
    training = request(config, names=[])
    training[protocol.REFERENCE] = asked.content[protocol.STATISTIC_VALUES]
    assert protocol.MODEL in send(grid, "train", SOURCE_NODE, training).content


def test_a_target_client_discloses_loss_accuracy_and_counts_only(grid: InProcessGrid, config: RunConfig) -> None:
    target = send(grid, "evaluate", TARGET_NODE, request(config, names=["gradient"])).content
    source = send(grid, "evaluate", SOURCE_NODE, request(config, names=["gradient"])).content
    assert sorted(target) == [protocol.COUNTS, protocol.METRICS]
    assert sorted(target[protocol.METRICS]) == ["accuracy", "loss", protocol.NUM_EXAMPLES]
    counts = {name: array.shape for name, array in target[protocol.COUNTS].items()}
    assert counts == {"confusion": (4, 4), "calibration": (15, 3)}, "the same shapes, however many examples there are"
    assert sorted(source) == [protocol.ALIGNMENT, protocol.COUNTS, protocol.METRICS]


def test_a_target_client_identifies_itself_without_training_examples(grid: InProcessGrid) -> None:
    reply = send(grid, protocol.IDENTIFY, TARGET_NODE, RecordDict())
    identity = protocol.Identity.from_record(reply.content.config_records[protocol.CONFIG])
    assert (identity.domain, identity.role, identity.train_examples) == ("east", "target", 0)
    assert identity.evaluate_examples == 48


def test_a_source_client_computes_only_what_its_strategy_lists(grid: InProcessGrid, config: RunConfig) -> None:
    reply = send(grid, "query.statistics", SOURCE_NODE, request(config, names=["inputs"]))
    assert reply.error.code == protocol.BAD_REQUEST
    assert "no statistic 'inputs'" in str(reply.error.reason)


def test_a_message_without_a_model_says_that_it_is_missing(grid: InProcessGrid, config: RunConfig) -> None:
    content = request(config, names=["gradient"])
    del content[protocol.MODEL]
    content[protocol.CONFIG][protocol.MODEL_ID] = "never sent"  # type: ignore[index]
    reply = send(grid, "query.statistics", SOURCE_NODE, content)
    assert reply.content.config_records[protocol.CONFIG][protocol.MODEL_MISSING] is True


def test_a_message_without_round_or_model_id_is_refused(grid: InProcessGrid) -> None:
    reply = send(grid, "train", SOURCE_NODE, RecordDict())
    assert reply.error.code == protocol.BAD_REQUEST
    assert protocol.MODEL_ID in str(reply.error.reason)
