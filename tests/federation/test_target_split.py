"""A target that is split answers two rows, of its in and out split; everything else is as without."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord
from misbehaving import Misbehaving
from toy import DOMAINS, TARGET, toy_config

from fedhess.domains.benchmark import SOURCE
from fedhess.domains.benchmark import TARGET as TARGET_ROLE
from fedhess.domains.split import split_as_domainbed
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import run_identity
from fedhess.jobs.metrics import add_confusions
from fedhess.models.prepared import local_domain
from fedhess.settings.run_config import RunConfig
from tests.promises.test_firewall import SOURCE_NODE, STUBBORN_NODE, TARGET_NODE, request, send

Run = Callable[..., Any]
HELD_OUT = {"domains_options": {"holdout": 0.25}, "strategy": "hgp"}
METRICS = ["accuracy", "loss", "num-examples"]


@pytest.fixture
def config() -> RunConfig:
    return toy_config(split="every", **HELD_OUT)


@pytest.fixture
def grid(config: RunConfig) -> Iterator[InProcessGrid]:
    nodes = {
        SOURCE_NODE: {"partition-id": 0, "num-partitions": 4},
        TARGET_NODE: {"partition-id": 3, "num-partitions": 4},
        STUBBORN_NODE: {"domain": "south", "role": "target"},
    }
    made = InProcessGrid(client_app, node_configs=nodes, run_config=config.to_run_config())
    with run_identity(1):
        yield made
    made.close()


# -- Firewall ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [TARGET_NODE, STUBBORN_NODE])
def test_target_discloses_loss_accuracy_and_counts_of_two_splits_only(
    grid: InProcessGrid, config: RunConfig, node: int
) -> None:
    reply = send(grid, "evaluate", node, request(config, names=["gradient"])).content
    assert sorted(reply) == [protocol.COUNTS, protocol.METRICS]
    assert sorted(reply[protocol.COUNTS]) == ["calibration", "confusion", "out-calibration", "out-confusion"]
    assert sorted(reply[protocol.METRICS]) == sorted([*METRICS, *(f"out-{name}" for name in METRICS)])
    for message_type in ("train", "query.statistics"):
        refused = send(grid, message_type, node, request(config, names=["gradient"]))
        assert refused.error.code == protocol.REFUSED_BY_TARGET


def test_source_discloses_nothing_more_than_without(grid: InProcessGrid, config: RunConfig) -> None:
    reply = send(grid, "evaluate", SOURCE_NODE, request(config, names=[])).content
    assert sorted(reply[protocol.METRICS]) == METRICS


@pytest.mark.parametrize("split", ["every", "domainbed"])
def test_target_client_trains_on_nothing_and_its_splits_are_its_domain(split: str) -> None:
    config = toy_config(split=split, **HELD_OUT)
    data = local_domain(config, domain=TARGET, role=TARGET_ROLE)
    assert data.train_size == 0
    both = torch.cat([data.evaluate_indices, data.out_indices])
    assert torch.equal(both.sort().values, torch.arange(48))
    assert len(data.out_indices) == 12


def test_domainbeds_draw_is_by_the_place_of_the_domain_and_the_seed() -> None:
    for seed in (0, 1):
        config = toy_config(split="domainbed", seed=seed, **HELD_OUT)
        for position, domain in enumerate(DOMAINS):
            role = TARGET_ROLE if domain == TARGET else SOURCE
            data = local_domain(config, domain=domain, role=role)
            kept, held = split_as_domainbed(48, holdout=0.25, trial_seed=seed, position=position)
            learned, out = (data.evaluate_indices, data.out_indices) if role == TARGET_ROLE else (
                data.train_indices, data.evaluate_indices)  # fmt: skip
            assert torch.equal(learned, kept)
            assert torch.equal(out, held)


# -- Rows --------------------------------------------------------------------------------------------------------------


def test_two_rows_of_the_target_and_training_is_unchanged(toy_run: Run) -> None:
    whole, split = toy_run(**HELD_OUT), toy_run(split="every", **HELD_OUT)
    assert all(torch.equal(split.tensors[name], value) for name, value in whole.tensors.items())
    for server_round in range(4):
        rows = {row["split"]: row for row in split.rows if row["round"] == server_round and row["role"] == "target"}
        assert {name: row["examples"] for name, row in rows.items()} == {"in": 36, "out": 12}
        (before,) = [row for row in whole.rows if row["round"] == server_round and row["role"] == "target"]
        assert before["split"] == "all"
        correct = sum(row["accuracy"] * row["examples"] for row in rows.values())
        assert correct == pytest.approx(before["accuracy"] * 48)
        assert rows["in"].keys() == rows["out"].keys() == before.keys()
        assert add_confusions([row["confusion"] for row in rows.values()]) == before["confusion"]
        assert rows["out"]["bytes_down"] == rows["out"]["bytes_up"] == 0, "one message, counted once"
        assert rows["in"]["bytes_down"] == before["bytes_down"]


def without_out_split(message: Message, reply: Message) -> Message:
    kept = {name: value for name, value in reply.content[protocol.METRICS].items() if not name.startswith("out-")}
    reply.content[protocol.METRICS] = MetricRecord(kept)
    return reply


def with_impossible_out_split(message: Message, reply: Message) -> Message:
    reply.content[protocol.METRICS] = MetricRecord({**reply.content[protocol.METRICS], "out-accuracy": 1.5})
    return reply


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (without_out_split, "num-examples, out-loss, out-accuracy, out-num-examples, a number each, got"),
        (with_impossible_out_split, "expected an out-accuracy in [0, 1] of at least one example"),
    ],
)
def test_target_that_does_not_answer_both_is_a_failure(toy_run: Run, act: Any, reason: str) -> None:
    app = Misbehaving(protocol.EVALUATE, act, partitions=[DOMAINS.index(TARGET)])
    rows = toy_run(app=app, rounds=1, split="every", **HELD_OUT).rows
    inside, outside = (row for row in rows if row["domain"] == TARGET and row["round"] == 1)
    assert (inside["split"], outside["split"]) == ("in", "out")
    assert inside["accuracy"] is outside["accuracy"] is None
    assert reason in inside["failures"][0]["reason"]
    assert outside["failures"] == [], "one failure, told once"
