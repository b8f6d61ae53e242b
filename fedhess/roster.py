"""Find out which node of the grid is which client, and draw the clients of a round."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhess import protocol
from fedhess.errors import FederationError
from fedhess.protocol import Identity
from fedhess.sampling import seeded_generator

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
ATTEMPTS = 3  # a node that cannot say who it is may still be starting; one that fails so often will not


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
    name take no part.

    Args:
        grid: Flower's grid.
        sources: Names of the source domains, in domain order.
        targets: Names of the target domains, in domain order.
        deadline: Seconds to wait for the clients.
        clients: Number of source clients of the run; 0 for one a source domain.

    Returns:
        The clients, source domains first, in domain order and by client number: never in the order of node ids.

    Raises:
        FederationError: A domain has no client or one of the source clients is missing when the deadline has passed, a
            client plays another role than the run gives its domain or holds a domain that the run does not have, or two
            nodes claim to be the same client.
    """
    end = time.monotonic() + deadline
    known: dict[int, Identity] = {}
    refusals: dict[int, list[str]] = {}
    while True:
        nodes = [node_id for node_id in grid.get_node_ids() if node_id not in known]
        for node_id, answer in _identify(grid, nodes, max(1.0, end - time.monotonic())):
            if isinstance(answer, Identity):
                known[node_id] = answer
            else:
                refusals.setdefault(node_id, []).append(answer)
        missing = _missing(known.values(), sources=sources, targets=targets, clients=clients or len(sources))
        if not missing:
            return _roster(known, sources=sources, targets=targets)
        hopeless = bool(nodes) and all(len(refusals.get(node_id, ())) >= ATTEMPTS for node_id in nodes)
        if time.monotonic() >= end or hopeless:
            reasons = "".join(f"\n  node {node_id}: {answers[-1]}" for node_id, answers in refusals.items())
            raise FederationError(
                f"{missing} after {deadline:g} s at most; {len(known)} nodes said who they are{reasons}"
            )
        time.sleep(POLL_SECONDS)


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


def _identify(grid: Grid, node_ids: Sequence[int], timeout: float) -> list[tuple[int, Identity | str]]:
    """Ask nodes who they are; a node that cannot say gives the reason instead."""
    messages = [Message(RecordDict(), dst_node_id=node, message_type=protocol.IDENTIFY) for node in node_ids]
    if not messages:
        return []
    answers: list[tuple[int, Identity | str]] = []
    replies = grid.send_and_receive(messages, timeout=timeout)
    by_id = {message.metadata.message_id: node for message, node in zip(messages, node_ids, strict=True)}
    for reply in replies:
        node_id = by_id.get(reply.metadata.reply_to_message_id)
        if node_id is None:
            continue
        if reply.has_error():
            answers.append((node_id, reply.error.reason or f"error {reply.error.code}"))
            continue
        try:
            answers.append((node_id, Identity.from_record(reply.content.config_records[protocol.CONFIG])))
        except (KeyError, ValueError) as error:
            answers.append((node_id, str(error)))
    return answers


def _roster(known: Mapping[int, Identity], *, sources: Sequence[str], targets: Sequence[str]) -> list[Client]:
    roles = dict.fromkeys(sources, protocol.SOURCE) | dict.fromkeys(targets, protocol.TARGET)
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
