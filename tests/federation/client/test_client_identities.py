"""Who a client is when there are many: its domain and number, what it holds, and what makes no sense."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from toy import SOURCES, toy_config

from fedhess.base.errors import FederationError, UsageError
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.batches import joint_batch
from fedhess.federation.client.call import place
from fedhess.federation.client.examples import NotInRunError, local_client, source_shares
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.protocol import Held, Identity
from fedhess.federation.server.discovery import discover
from fedhess.settings.run_config import RunConfig
from tests.federation.test_nodes import FixedNodes
from tests.promises.test_many_clients import DRAWN, MIXED

Run = Callable[..., Any]
ALONE: dict[str, Any] = {f"held-{column}": [] for column in ("domains", "train-examples", "evaluate-examples")}


def test_a_client_of_one_domain_and_one_of_several_know_their_parts() -> None:
    config = toy_config(domains_options={"holdout": 0.25, "examples": 96}, **MIXED)
    client = local_client(config, domain="north", role="source", client=1)
    identity = client.identity("source")
    assert [held.domain for held in identity.several] == list(SOURCES)
    assert Identity.from_record(dict(identity.to_record())) == identity
    inputs, labels, sizes = joint_batch(list(client.training_parts.values()), config, step=0)
    assert len(inputs) == len(labels) == sum(sizes) == 16
    assert sizes[0] > sizes[1] >= 1, "in proportion to the examples"
    pure = toy_config(**MIXED | {"heterogeneity": 0.0})
    assert local_client(pure, domain="north", role="source", client=1).identity("source").several == ()


def test_no_two_clients_share_a_stream_of_batches() -> None:
    for partition in (MIXED, DRAWN):
        config = toy_config(**partition)
        clients = [local_client(config, domain=d, role="source", client=i) for d, i in source_shares(config)]
        keys = [part.key for client in clients for part in client.parts.values()]
        assert len(clients) == config.source_clients
        assert len(set(keys)) == len(keys)
        assert len({client.key for client in clients}) == len(clients)


def test_a_client_that_the_partition_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="client 9 of domain 'north', which the run's partition does not have"):
        local_client(toy_config(**MIXED), domain="north", role="source", client=9)


@pytest.mark.parametrize(
    "changes",
    [
        {"held-train-examples": [5]},
        {"held-domains": ["north", "north"]},
        {"held-evaluate-examples": [3, -3]},
        {"held-train-examples": [5, 6]},
        {"role": "target"},
        {"role": "judge"},
        {"client": "0"},
        {"client": True},
        {"classes": 7},
        {"classes": [1, 2]},
        {"held-domains": [b"north", b"south"]},
        *(ALONE | {"train-examples": count} for count in (2.5, math.nan, math.inf, 2**50)),
        ALONE | {"role": "target", protocol.EVALUATION_ROUNDING: 2.5, protocol.EVALUATION_EPSILON: 1.0},
        ALONE | {"role": "target", protocol.EVALUATION_ROUNDING: 2, protocol.EVALUATION_EPSILON: math.nan},
    ],
)
def test_an_identity_whose_domains_make_no_sense_is_refused(changes: dict[str, Any]) -> None:
    held = (Held("north", 5, 2), Held("south", 5, 1))
    record = dict(Identity("north", "source", 0, 10, 3, True, held).to_record())
    assert Identity.from_record(record).several == held
    with pytest.raises(ValueError, match=r"counts that add up, each domain once|no negative count"):
        Identity.from_record(record | changes)


def test_a_client_of_a_domain_that_the_run_does_not_have_is_an_error() -> None:
    def told(other: str) -> dict[int, Identity]:
        mixed = Identity("north", "source", 0, 10, 3, True, (Held("north", 5, 2), Held(other, 5, 1)))
        return {4: mixed, 5: Identity("south", "source", 0, 9, 3, True), 6: Identity("east", "target", 0, 0, 3, False)}

    with run_identity(1):
        config = toy_config(sources=("north", "south"))
        assert len(discover(FixedNodes(told("south")), config)) == 3  # type: ignore[arg-type]
        with pytest.raises(FederationError, match="client north: it holds examples of west, which is no source"):
            discover(FixedNodes(told("west")), config)  # type: ignore[arg-type]
        with pytest.raises(FederationError, match="client north: it holds examples of east, which is no source"):
            discover(FixedNodes(told("east")), config)  # type: ignore[arg-type]


def test_the_run_waits_for_all_of_its_clients() -> None:
    two = {number: Identity("north", "source", number, 9, 3, True) for number in (0, 1)}
    with run_identity(1):

        def run_of(clients: int) -> RunConfig:
            shared = {"partition": "dirichlet", "clients_per_domain": clients, "exchange_deadline": 0.1}
            return toy_config(sources=("north",), targets=(), **shared)

        assert len(discover(FixedNodes(two), run_of(2))) == 2  # type: ignore[arg-type]
        with pytest.raises(FederationError, match=r"2 of 3 source clients after 0\.\d s .*; 2 nodes identified"):
            discover(FixedNodes(two), run_of(3))  # type: ignore[arg-type]


def test_a_deployed_node_says_which_client_of_its_domain_it_is() -> None:
    config = toy_config(partition="dirichlet", clients_per_domain=2)

    def node(**node_config: Any) -> Context:
        return Context(1, 1, node_config, RecordDict(), {})

    assert place(config, node(domain="south", client=1)) == ("south", "source", 1)
    assert place(config, node(domain="south")) == ("south", "source", 0)
    assert [place(config, node(**{"partition-id": number}))[::2] for number in (0, 1, 2, 6)] == [
        ("north", 0), ("north", 1), ("south", 0), ("east", 0),
    ]  # fmt: skip
    with pytest.raises(NotInRunError, match="this node holds domain 'moon'; the run has north, south"):
        place(config, node(domain="moon"))
    run_config = config.to_run_config()
    with run_identity(1):
        question = Message(RecordDict(), dst_node_id=1, message_type=protocol.IDENTIFY)
        for strange in ({"domain": "moon"}, {"domain": "south", "client": 2}, {}):
            answer = client_app(question, Context(1, 1, strange, RecordDict(), run_config))  # type: ignore[arg-type]
            assert answer.error.code == protocol.NOT_IN_RUN
    with pytest.raises(UsageError, match="the node config has no domain, and its partition-id is 7"):
        place(config, node(**{"partition-id": 7}))
