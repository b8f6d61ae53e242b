"""What Flower's SecAgg+ does with fedhess's messages in this version: why docs/threats.md says that it hides nothing.

A test that fails after an upgrade of Flower says that SecAgg+ may carry them now.
"""

from collections.abc import Iterator

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import mod
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.server.workflow import SecAggPlusWorkflow

from fedhess.federation import protocol
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.tensors import decode_tensors, encode_tensors


@pytest.fixture(autouse=True)
def in_a_run() -> Iterator[None]:
    with run_identity(1):
        yield


def context() -> Context:
    return Context(1, 2, {}, RecordDict(), {})


def reply(message: Message, _: Context) -> Message:
    """Reply as a source client does."""
    arrays = encode_tensors({"head.weight": torch.ones(2, 3)})
    key = protocol.MODEL if message.metadata.message_type.startswith("train") else protocol.STATISTIC_VALUES
    return Message(RecordDict({key: arrays, protocol.METRICS: MetricRecord({"loss": 1.0})}), reply_to=message)


@pytest.mark.parametrize("message_type", [protocol.STATISTICS, protocol.EVALUATE, "train.masked"])
def test_its_client_half_passes_all_but_plain_train_messages_unmasked(message_type: str) -> None:
    sent = secaggplus_mod(Message(RecordDict(), dst_node_id=2, message_type=message_type), context(), reply)
    (arrays,) = sent.content.array_records.values()
    assert torch.equal(decode_tensors(arrays)["head.weight"], torch.ones(2, 3))


def test_its_client_half_masks_replies_of_flowers_old_clients_alone() -> None:
    def ask(stage: str, own: Context, **settings: object) -> Message:
        config = ConfigRecord({Key.STAGE: stage, **settings})  # type: ignore[dict-item]
        content = RecordDict({RECORD_KEY_CONFIGS: config})
        return secaggplus_mod(Message(content, dst_node_id=2, message_type=protocol.TRAIN), own, reply)

    nodes = {node: context() for node in (2, 3, 4)}
    sizes = {Key.SAMPLE_NUMBER: 3, Key.SHARE_NUMBER: 3, Key.THRESHOLD: 2}
    ranges = {Key.CLIPPING_RANGE: 8.0, Key.TARGET_RANGE: 2**22, Key.MOD_RANGE: 2**32, Key.MAX_WEIGHT: 1000.0}
    public = {}
    for node, own in nodes.items():
        made = ask(Stage.SETUP, own, **sizes, **ranges).content.config_records[RECORD_KEY_CONFIGS]
        public[str(node)] = [made[Key.PUBLIC_KEY_1], made[Key.PUBLIC_KEY_2]]
    own = nodes[2]
    ask(Stage.SHARE_KEYS, own, **public)
    with pytest.raises(KeyError, match=r"fitres\.parameters"):
        ask(Stage.COLLECT_MASKED_VECTORS, own, **{Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []})


def test_its_server_half_wants_the_context_of_flowers_old_server() -> None:
    with pytest.raises(TypeError, match="Expect a LegacyContext, but get Context"):
        SecAggPlusWorkflow(3, 2)(None, context())  # type: ignore[arg-type]


def test_the_mods_for_client_apps_of_today_have_none() -> None:
    assert [name for name in mod.__all__ if "secagg" in name.lower()] == []
    assert "LocalDpMod" in mod.__all__
