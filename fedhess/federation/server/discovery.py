"""Find out which node of the grid is which client, and draw the clients of a round."""

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhess.base.errors import FederationError
from fedhess.base.seeds import seeded_generator
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.protocol import Identity

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
ATTEMPTS = 3  # a node that cannot say who it is may still be starting; one that fails so often will not
AGAIN_SECONDS = 1.0  # after which a node that could not say who it is is asked again
SILENT_SECONDS = 30.0  # after which a node that says nothing is: it may have ended with the question and be back
HOPELESS_SECONDS = 30.0  # without any news, while every node that could be a missing client has failed so often


@dataclass(frozen=True)
class Client:
    """A node of the grid and who it says it is."""

    node_id: int
    identity: Identity

    @property
    def label(self) -> str:
        """The client's name in messages: its domain."""
        return self.identity.label


def discover(
    grid: Grid, *, sources: Sequence[str], targets: Sequence[str], deadline: float, clients: int = 0
) -> list[Client]:
    """Ask every node who it is, until each domain of the run has a client and the run all of its clients.

    The server of a deployment cannot see a node's configuration, so it asks. Nodes of domains that the run does not
    name take no part, and nobody waits for their answers. Where a client is missing and nodes are there that fail to
    say who they are, the run gives up before the deadline: at once where the grid's nodes are fixed (its attribute
    ``nodes_are_fixed``), else after half a minute without news.

    Args:
        grid: Flower's grid.
        sources: Names of the source domains, in domain order.
        targets: Names of the target domains, in domain order.
        deadline: Seconds to wait for the clients; where they take turns (``nodes_are_fixed``), for each.
        clients: Number of source clients of the run; 0 for one a source domain.

    Returns:
        The clients, source domains first, in domain order and by client number: never in the order of node ids.

    Raises:
        FederationError: A domain has no client or one of the source clients is missing when the deadline has passed, a
            client plays another role than the run gives its domain or holds a domain that the run does not have, or two
            nodes claim to be the same client.
    """
    inquiry = _Inquiry(grid)
    fixed = getattr(grid, "nodes_are_fixed", False)
    patience = 0.0 if fixed else HOPELESS_SECONDS
    began = time.monotonic()
    while True:
        inquiry.go_on()
        known = inquiry.known
        missing = _missing(known.values(), sources=sources, targets=targets, clients=clients or len(sources))
        if not missing:
            return _roster(known, sources=sources, targets=targets)
        since = inquiry.news if fixed else began  # clients that take turns have the time each
        if time.monotonic() - since >= deadline or inquiry.is_hopeless(patience):
            reasons = "".join(f"\n  node {node_id}: {reason}" for node_id, reason in inquiry.unknown().items())
            raise FederationError(
                f"{missing} after {time.monotonic() - began:.1f} s (exchange deadline: {deadline:g} s); {len(known)} "
                f"nodes said who they are{reasons}"
            )
        time.sleep(POLL_SECONDS)


class _Inquiry:
    """Asks the nodes of a grid who they are, those that come later and those that fail again; waits for none.

    Args:
        grid: Flower's grid.

    Attributes:
        known: Who the nodes say they are.
        news: When something other than a further refusal came.
    """

    def __init__(self, grid: Grid) -> None:
        self.known: dict[int, Identity] = {}
        self._grid = grid
        self._questions: dict[str, int] = {}  # message id -> node
        self._asked: dict[int, float] = {}  # when, the last time
        self._refusals: dict[int, list[str]] = {}
        self._others: set[int] = set()  # nodes of domains that the run does not have
        self._online: list[int] = []
        self.news = time.monotonic()

    def go_on(self) -> None:
        """Ask whom it is time to ask, and take the answers that are there."""
        self._online = list(self._grid.get_node_ids())
        silent = set(self._questions.values())
        new = [node_id for node_id in self._online if self._is_due(node_id, silent=node_id in silent)]
        messages = [Message(RecordDict(), dst_node_id=node, message_type=protocol.IDENTIFY) for node in new]
        if messages:
            ids = self._grid.push_messages(messages)
            self._questions |= {key: node for key, node in zip(ids, new, strict=True) if key}  # none if it was not sent
        for node_id in new:
            if node_id not in self._asked:
                self.news = time.monotonic()
            self._asked[node_id] = time.monotonic()
        for reply in self._grid.pull_messages(list(self._questions)) if self._questions else ():
            if reply.metadata.reply_to_message_id in self._questions:
                self._take(self._questions.pop(reply.metadata.reply_to_message_id), reply)

    def is_hopeless(self, patience: float) -> bool:
        """Whether every node that is not known has failed too often, and nothing new has come for so many seconds."""
        unknown = [node_id for node_id in self._online if node_id not in self.known.keys() | self._others]
        failed = bool(unknown) and all(len(self._refusals.get(node_id, ())) >= ATTEMPTS for node_id in unknown)
        return failed and time.monotonic() - self.news >= patience

    def unknown(self) -> dict[int, str]:
        """Return why each node is not known: its last refusal, or that it has not answered."""
        asked = [node_id for node_id in self._asked if node_id not in self.known]
        return {node_id: self._refusals.get(node_id, ["no answer"])[-1] for node_id in asked}

    def _is_due(self, node_id: int, *, silent: bool) -> bool:
        if node_id in self.known or node_id in self._others:
            return False
        pause = SILENT_SECONDS if silent else AGAIN_SECONDS
        return time.monotonic() - self._asked.get(node_id, -math.inf) >= pause

    def _take(self, node_id: int, reply: Message) -> None:
        if reply.has_error():
            reason = reply.error.reason or f"error {reply.error.code}"
            if reply.error.code == protocol.NOT_IN_RUN:
                self._others.add(node_id)
        else:
            try:
                self.known[node_id] = Identity.from_record(reply.content.config_records[protocol.CONFIG])
            except (KeyError, ValueError) as error:
                reason = str(error)
            else:
                self.news = time.monotonic()
                return
        if node_id not in self._refusals:
            logger.warning("node %d cannot say which client it is: %s", node_id, reason)
        self._refusals.setdefault(node_id, []).append(reason)


def _missing(identities: Collection[Identity], *, sources: Sequence[str], targets: Sequence[str], clients: int) -> str:
    """Say who is not there yet; nothing if the run can begin."""
    held = {holding.domain for identity in identities for holding in identity.holdings}
    absent = sorted({*sources, *targets} - held - {identity.domain for identity in identities})
    if absent:
        return f"no client for {', '.join(absent)}"
    there = sum(identity.domain in sources for identity in identities)
    return f"{there} of {clients} source clients" if there < clients else ""


def draw_clients(clients: Sequence[Client], number: int, *, seed: int, server_round: int) -> list[Client]:
    """Draw the clients of a round, all with equal probability and none twice, by the seed and the round alone.

    As in McMahan et al. ("Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1) domains play no part: one may have no client in a round.

    Args:
        clients: All source clients, in domain order.
        number: How many; 0 for all.
        seed: Of the run.
        server_round: Number of the round.

    Returns:
        The drawn clients, in domain order.
    """
    if number == 0 or number >= len(clients):
        return list(clients)
    order = torch.randperm(len(clients), generator=seeded_generator(seed, "clients", server_round))
    return [clients[position] for position in sorted(order[:number].tolist())]


def _roster(known: Mapping[int, Identity], *, sources: Sequence[str], targets: Sequence[str]) -> list[Client]:
    roles = dict.fromkeys(sources, SOURCE) | dict.fromkeys(targets, TARGET)
    order = {domain: position for position, domain in enumerate(roles)}
    roster: dict[tuple[str, int], Client] = {}
    for node_id, identity in known.items():
        if identity.domain not in roles:
            logger.warning("client %s takes no part in this run: not one of its domains", identity.label)
            continue
        if identity.role != roles[identity.domain]:
            raise FederationError(
                f"client {identity.label}: the run has it as {roles[identity.domain]}, the node says "
                f"{identity.role}; start the node with the role that the run gives it"
            )
        unknown = sorted({holding.domain for holding in identity.holdings} - roles.keys())
        if unknown:
            raise FederationError(
                f"client {identity.label}: it says that it holds examples of {', '.join(unknown)}, which the run does "
                "not have; start the node with the run's domains"
            )
        if any(roles[holding.domain] != identity.role for holding in identity.holdings):
            raise FederationError(f"client {identity.label}: it says that it holds a target domain beside a source's")
        if (identity.domain, identity.client) in roster:
            raise FederationError(f"two nodes say that they are client {identity.label}; stop one of them")
        roster[identity.domain, identity.client] = Client(node_id, identity)
    return sorted(roster.values(), key=lambda client: (order[client.identity.domain], client.identity.client))
