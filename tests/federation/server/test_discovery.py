"""Finding the clients of a run: nobody waits for nodes that are not needed, and late ones are found."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from toy import toy_config

from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client.app import return_nonce
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.protocol import Identity
from fedhess.federation.server import discovery
from fedhess.federation.server.discovery import discover
from tests.federation.test_nodes import FixedNodes

NORTH, SOUTH = (Identity(name, "source", 0, 10, 10, False) for name in ("north", "south"))
FOREIGN, LATE = 7, 2


class Nodes(FixedNodes):
    """North is there, south comes online after some questions; a foreign node does what the test says."""

    def __init__(self, foreign: Callable[[Message], Message | None], *, comes_after: float = 0.0) -> None:
        super().__init__({1: NORTH, LATE: SOUTH})
        self.foreign, self.comes_at = foreign, time.monotonic() + comes_after
        self.asked: list[int] = []

    def get_node_ids(self) -> list[int]:
        return [1, *([LATE] if time.monotonic() >= self.comes_at else []), FOREIGN]

    def answer(self, message: Message) -> Message | None:
        return self.foreign(message) if message.metadata.dst_node_id == FOREIGN else super().answer(message)

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().push_messages(messages)


def silent(message: Message) -> None:
    return None


def refusing(message: Message) -> Message:
    return Message(Error(1002, "no data of this benchmark"), reply_to=message)


def of_another_run(message: Message) -> Message:
    return Message(Error(protocol.NOT_IN_RUN, "this node holds domain 'moon'"), reply_to=message)


def refuses(**own: Any) -> Callable[[Message], Message]:
    """Reply as a node whose own limits forbid the run."""

    def act(message: Message) -> Message:
        refusal = RecordDict({protocol.CONFIG: ConfigRecord({**own, protocol.REFUSED: "not on its list"})})
        return return_nonce(message, None, lambda *_: Message(refusal, reply_to=message))  # type: ignore[arg-type]

    return act


def odd(message: Message) -> Message:
    """Identify itself with a field of another type."""
    record = ConfigRecord({**NORTH.to_record(), "domain": "moon", "classes": 7})
    reply = Message(RecordDict({protocol.CONFIG: record}), reply_to=message)
    return return_nonce(message, None, lambda *_: reply)  # type: ignore[arg-type]


def find(grid: FixedNodes, *, deadline: float = 20.0, **given: Any) -> list[str]:
    with run_identity(1):
        found = discover(grid, toy_config(sources=("north", "south"), targets=(), exchange_deadline=deadline), **given)  # type: ignore[arg-type]
    return [client.label for client in found]


@pytest.mark.parametrize("foreign", [silent, refusing, of_another_run, odd])
@pytest.mark.parametrize("comes_after", [0.0, 0.3])
def test_a_foreign_node_keeps_nobody_waiting(foreign: Callable[[Message], Message | None], comes_after: float) -> None:
    began = time.monotonic()
    assert find(Nodes(foreign, comes_after=comes_after)) == ["north", "south"]
    assert time.monotonic() - began < comes_after + 5


@pytest.mark.parametrize(("foreign", "reason"), [(silent, "no answer"), (refusing, "no data of this benchmark")])
def test_nodes_that_did_not_say_who_they_are_are_named(
    foreign: Callable[[Message], Message | None], reason: str
) -> None:
    with pytest.raises(
        FederationError, match=rf"(?s)no client for south after \d.*1 nodes identified .*node 7: {reason}"
    ):
        find(Nodes(foreign, comes_after=60.0), deadline=0.3)


@pytest.mark.parametrize(
    ("own", "nodes"),
    [
        ({"domain": "south"}, {}),
        ({"domain": "south", "client": 0}, {"north": 1, "south": FOREIGN}),
        ({"partition-id": 1}, {}),  # a simulation's node
    ],
)
def test_a_node_of_the_run_that_refuses_ends_it_at_once(own: dict[str, Any], nodes: dict[str, int]) -> None:
    began = time.monotonic()
    reason = r"(?s)no client for south .*a node refuses.*1 nodes identified .*node 7: not on its list"
    with pytest.raises(FederationError, match=reason):
        find(Nodes(refuses(**own), comes_after=600.0), deadline=600, nodes=nodes)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("own", "nodes"),
    [
        ({"domain": "moon"}, {}),
        ({"domain": "south", "client": 1}, {}),
        ({}, {}),
        *((own, {"north": 1, "south": LATE}) for own in ({"domain": "south"}, {}, {"partition-id": 1})),
        ({"domain": "south", "client": 1}, {"north": 1, "south": LATE, "south[1]": FOREIGN}),
    ],
)
def test_who_is_no_client_of_the_run_does_not_end_it_by_refusing(own: dict[str, Any], nodes: dict[str, int]) -> None:
    """A node of another domain, of none or of too high a number, and one that was registered as none of the run's."""
    assert find(Nodes(refuses(**own), comes_after=0.2), nodes=nodes) == ["north", "south"]


def test_where_one_refuses_a_silent_one_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "OTHERS_SECONDS", 0.5)

    class Silent(Nodes):
        def answer(self, message: Message) -> Message | None:
            return None if message.metadata.dst_node_id == 1 else super().answer(message)

    began = time.monotonic()
    with pytest.raises(FederationError, match=r"(?s)no client for north, south.*node 1: no answer.*node 7: not on its"):
        find(Silent(refuses(domain="south"), comes_after=600.0), deadline=600)
    assert time.monotonic() - began < 30


def test_a_node_of_another_run_is_asked_once() -> None:
    nodes = Nodes(of_another_run, comes_after=0.2)
    assert find(nodes) == ["north", "south"]
    assert nodes.asked.count(FOREIGN) == 1


def test_a_node_that_was_started_again_as_a_client_of_the_run_is_asked_again() -> None:
    class Corrected(Nodes):
        """The foreign node is south from its second start on, half a second after it was asked."""

        def get_node_ids(self) -> list[int]:
            waited = 0.0 if FOREIGN not in self.asked else time.monotonic() - self.answered
            return [1] if 0.5 < waited < 1.0 else [1, FOREIGN]

        def answer(self, message: Message) -> Message | None:
            if message.metadata.dst_node_id != FOREIGN or self.asked.count(FOREIGN) > 1:
                return super().answer(message)
            self.answered = time.monotonic()
            return of_another_run(message)

    nodes = Corrected(lambda message: FixedNodes.answer(nodes, message))
    nodes.identities[FOREIGN] = SOUTH
    assert find(nodes) == ["north", "south"]
    assert nodes.asked.count(FOREIGN) == 2


def test_where_no_node_can_come_three_refusals_end_it() -> None:
    nodes = Nodes(refusing, comes_after=60.0)
    nodes.nodes_are_fixed = True  # type: ignore[attr-defined]
    with pytest.raises(FederationError, match="node 7: no data of this benchmark"):
        find(nodes)
    assert nodes.asked.count(FOREIGN) == 3


def test_a_node_that_lost_the_question_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SILENT_SECONDS", 0.3)

    class Forgetful(Nodes):
        def answer(self, message: Message) -> Message | None:
            first = message is self.first_to(LATE)
            return None if first else super().answer(message)

        def first_to(self, node: int) -> Message:
            return next(m for m in self.pushed.values() if m.metadata.dst_node_id == node)

    nodes = Forgetful(silent)
    assert find(nodes) == ["north", "south"]
    assert nodes.asked.count(LATE) == 2
    assert nodes.asked.count(1) == 1


def test_clients_that_take_turns_have_the_deadline_each() -> None:
    class Turns(FixedNodes):
        """Ten clients, one answer every 0.1 s."""

        nodes_are_fixed = True
        free_at = 0.0

        def answer(self, message: Message) -> Message | None:
            if time.monotonic() < self.free_at:
                return None
            self.free_at = time.monotonic() + 0.1
            return super().answer(message)

    ten = {number: Identity("north", "source", number, 9, 3, True) for number in range(10)}
    with run_identity(1):
        shared = {"partition": "dirichlet", "clients_per_domain": 10, "exchange_deadline": 1.5}
        found = discover(Turns(ten), toy_config(sources=("north",), targets=(), **shared))  # type: ignore[arg-type]
    assert [client.identity.client for client in found] == list(range(10))


EAST = Identity("south", "source", 1, 10, 10, False)


@pytest.mark.parametrize(
    ("identities", "message"),
    [
        ({1: NORTH, 2: NORTH}, "two nodes are client north, 1 and 2"),
        ({1: NORTH, 2: SOUTH, 3: EAST}, r"3 nodes are source clients, the run has 2; stop one of north \(node 1\)"),
    ],
)
def test_a_node_too_many_is_named_at_once(identities: dict[int, Identity], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(FederationError, match=message):
        find(FixedNodes(identities), deadline=600)
    assert time.monotonic() - began < 30


def test_a_registered_node_that_answers_as_another_client_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    sybil = FixedNodes({1: NORTH, 3: SOUTH, 2: SOUTH})
    with pytest.raises(FederationError, match="two nodes are client south, 3 and 2"):
        find(sybil, deadline=1.0)
    assert find(FixedNodes({1: NORTH, 3: SOUTH})) == ["north", "south"], "first come, and nobody says who is who"
    assert find(sybil, nodes={"north": 1, "south": 2, "east": 3}) == ["north", "south"]
    said = "node 3 takes no part: it answers as client south, which is node 2; this one is client east"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"north": 1, "south": 2}, "node 3: it answers as client south, which is node 2; this one is none"),
        (
            {"north": 1, "east": 3},
            "node 3: it answers as client south, which is no registered client; this one is client east",
        ),
    ],
)
def test_a_run_does_not_begin_with_a_node_in_anothers_place(nodes: dict[str, int], reason: str) -> None:
    with pytest.raises(FederationError, match=rf"(?s)no client for south after .*{reason}"):
        find(FixedNodes({1: NORTH, 3: SOUTH}), deadline=0.5, nodes=nodes)
