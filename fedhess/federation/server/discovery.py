"""Find out which node of the grid is which client, and draw the clients of a round."""

import logging
import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedhess.base.errors import FederationError
from fedhess.base.seeds import seeded_generator
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.protocol import Identity
from fedhess.settings.run_config import RunConfig

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
ATTEMPTS = 3  # questions to a node of a simulation: it may still be starting
AGAIN_SECONDS = 1.0  # after which a node that replied with an error is asked again
FOREIGN = "the reply does not return the message's nonce: another node sent it, or one with other code"
OTHERS_SECONDS = 10.0  # for the other nodes to answer after one refuses, so that all reasons are named
SILENT_SECONDS = 30.0  # after which a node that did not reply is asked again: it may have restarted


@dataclass(frozen=True)
class Client:
    """A node of the grid and the client that it is."""

    node_id: int
    identity: Identity

    @property
    def label(self) -> str:
        """The client's name in messages."""
        return self.identity.label


def discover(grid: Grid, config: RunConfig, nodes: Mapping[str, int] | None = None) -> list[Client]:
    """Ask every node which client it is, until each domain of the run has a client and all source clients are found.

    The server of a deployment cannot see a node's configuration, so it asks. Nodes of domains that the run does not
    name take no part, and their answers are not waited for. If a node of the run refuses it, the search ends once the
    others have answered, at most OTHERS_SECONDS later. If nodes are fixed (the attribute ``nodes_are_fixed`` of a
    simulation's grid), it also ends once every node that is not known has failed ATTEMPTS times. With ``nodes``,
    client -> node, each node may answer for its own client only.

    Returns:
        The clients, source domains first, in domain order and by client number, never in the order of node ids.

    Raises:
        FederationError: A client is missing and no further one was found within the exchange deadline. Earlier if a
            node refuses or contradicts the run, contradicts another node, or exceeds the run's number of clients.
    """
    inquiry = _Inquiry(grid, nodes or {}, config)
    began, deadline = time.monotonic(), config.exchange_deadline
    while True:
        inquiry.poll()
        known = inquiry.known
        roster = _roster(known, config)
        missing = _missing(known.values(), config)
        if not missing:
            return roster
        failed = getattr(grid, "nodes_are_fixed", False) and inquiry.has_failed()
        if failed or inquiry.is_refused() or time.monotonic() - inquiry.last_found >= deadline:
            reasons = "".join(f"\n  node {node}: {reason}" for node, reason in inquiry.reasons().items())
            why = "a node refuses" if inquiry.refused else f"exchange deadline: {deadline:g} s"
            raise FederationError(
                f"{missing} after {time.monotonic() - began:.1f} s ({why}); {len(known)} nodes identified themselves"
                f"{reasons}"
            )
        time.sleep(POLL_SECONDS)


class _Inquiry:
    """Asks the nodes of a grid which clients they are, without waiting for any of them."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int], config: RunConfig) -> None:
        self.known: dict[int, Identity] = {}
        self.refused: dict[int, float] = {}  # nodes of the run that refuse it -> when they did
        self.last_found = time.monotonic()
        self._grid, self._nodes, self._config = grid, nodes, config
        self._questions: dict[str, tuple[int, str]] = {}  # message id -> node and nonce
        self._asked: dict[int, float] = {}  # node -> when it was last asked
        self._errors: dict[int, list[str]] = {}
        self._others: set[int] = set()  # nodes of domains that the run does not have, until they are started again

    def poll(self) -> None:
        """Ask the nodes that are due, and read the replies that have arrived."""
        silent = {node for node, _ in self._questions.values()}
        online = list(self._grid.get_node_ids())
        self._others &= set(online)
        due = [node for node in online if self._is_due(node, silent=node in silent)]
        messages = [Message(RecordDict(), dst_node_id=node, message_type=protocol.IDENTIFY) for node in due]
        if messages:
            asked = list(zip(due, [add_nonce(message) for message in messages], strict=True))
            ids = self._grid.push_messages(messages)
            self._questions |= {key: one for key, one in zip(ids, asked, strict=True) if key}  # no id if not sent
        self._asked |= dict.fromkeys(due, time.monotonic())
        for reply in self._grid.pull_messages(list(self._questions)) if self._questions else ():
            if reply.metadata.reply_to_message_id in self._questions:
                self._read(*self._questions.pop(reply.metadata.reply_to_message_id), reply)

    def has_failed(self) -> bool:
        """Whether every node that is not known has replied with an error often enough."""
        unknown = self._asked.keys() - self.known.keys() - self._others
        return bool(unknown) and all(len(self._errors.get(node, ())) >= ATTEMPTS for node in unknown)

    def is_refused(self) -> bool:
        """Whether a node of the run refuses it, and the others that were asked have answered or had time to."""
        if not self.refused:
            return False
        return not self._questions or time.monotonic() - min(self.refused.values()) >= OTHERS_SECONDS

    def reasons(self) -> dict[int, str]:
        """Return why each node is not known: its last error, or that it has not answered."""
        return {node: self._errors.get(node, ["no answer"])[-1] for node in self._asked if node not in self.known}

    def _is_due(self, node: int, *, silent: bool) -> bool:
        pause = SILENT_SECONDS if silent else AGAIN_SECONDS
        settled = node in self.known or node in self._others or node in self.refused
        return not settled and time.monotonic() - self._asked.get(node, -math.inf) >= pause

    def _check_name(self, node: int, label: str) -> None:
        """Check that a node may answer for a client."""
        if self._nodes and self._nodes.get(label) != node:
            own = [name for name, number in self._nodes.items() if number == node]
            raise ValueError(
                f"it answers as client {label}, which is "
                f"{f'node {self._nodes[label]}' if label in self._nodes else 'no registered client'}; this one is "
                f"{f'client {own[0]}' if own else 'none'}"
            )

    def _note_refusal(self, node: int, record: ConfigRecord) -> None:
        """Record that a node refuses; the run cannot begin without it if it is a client of the run."""
        domain, client, position = (record.get(key) for key in protocol.PLACE)
        config, client = self._config, 0 if client is None else client
        most = config.source_clients if config.partition == "lambda" else config.source_clients // len(config.sources)
        if domain is None and position is not None and not self._nodes:  # all nodes of a simulation are the run's
            self.refused[node] = time.monotonic()
        elif domain not in (*config.sources, *config.targets) or not isinstance(client, int) or client >= most:
            self._others.add(node)
        else:
            self._check_name(node, protocol.client_label(str(domain), client))
            self.refused[node] = time.monotonic()

    def _read(self, node: int, nonce: str, reply: Message) -> None:
        try:
            if reply.has_error():
                if reply.error.code == protocol.NOT_IN_RUN:
                    self._others.add(node)
                raise ValueError(protocol.printable(reply.error.reason or f"error {reply.error.code}"))
            if not returns_nonce(reply, nonce):
                raise ValueError(FOREIGN)
            record = reply.content.config_records[protocol.CONFIG]
            if protocol.REFUSED in record:
                self._note_refusal(node, record)
                raise ValueError(str(record[protocol.REFUSED]))
            identity = Identity.from_record(record)
            self._check_name(node, identity.label)
            self.known[node] = identity
            self.last_found = time.monotonic()
        except (KeyError, ValueError) as error:
            if node not in self._errors:
                logger.warning("node %d takes no part: %s", node, protocol.printable(str(error)))
            self._errors.setdefault(node, []).append(protocol.printable(str(error)))


def add_nonce(message: Message) -> str:
    """Put a new random nonce of 128 bits into a message and return it; the reply must contain the nonce too.

    Flower does not check that the node that replies is the node that was asked, and a message's id can be guessed.
    """
    nonce = secrets.token_hex(16)
    config = message.content.config_records.get(protocol.CONFIG, ConfigRecord())
    # A copy, because a Flower strategy shares one content between messages.
    message.content = RecordDict({**message.content, protocol.CONFIG: ConfigRecord({**config, protocol.NONCE: nonce})})
    return nonce


def returns_nonce(reply: Message, nonce: str) -> bool:
    """Remove the nonce from a reply; return whether it is the message's nonce."""
    config = reply.content.config_records.get(protocol.CONFIG, ConfigRecord())
    found = config.pop(protocol.NONCE, None)
    if not config and protocol.CONFIG in reply.content:
        del reply.content[protocol.CONFIG]
    return found == nonce


def _missing(identities: Collection[Identity], config: RunConfig) -> str:
    """Describe which clients are missing; "" if the run can begin."""
    held = {holding.domain for identity in identities for holding in identity.holdings}
    absent = sorted({*config.sources, *config.targets} - held - {identity.domain for identity in identities})
    if absent:
        return f"no client for {', '.join(absent)}"
    there, clients = sum(identity.domain in config.sources for identity in identities), config.source_clients
    return f"{there} of {clients} source clients" if there < clients else ""


def draw_clients(clients: Sequence[Client], number: int, *, seed: int, server_round: int) -> list[Client]:
    """Draw the clients of a round uniformly without replacement, by the seed and the round alone.

    As in McMahan et al. ("Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1) domains play no part: a domain may have no client in a round. ``number`` 0 draws all.
    """
    if number == 0 or number >= len(clients):
        return list(clients)
    order = torch.randperm(len(clients), generator=seeded_generator(seed, "clients", server_round))
    return [clients[position] for position in sorted(order[:number].tolist())]


def _check_alike(clients: Sequence[Client]) -> None:
    """Check that all clients number the classes alike and give the model the same kind of inputs."""
    for what in ("classes", "inputs"):
        found: dict[object, list[str]] = {}
        for client in clients:
            found.setdefault(getattr(client.identity, what), []).append(client.label)
        if len(found) > 1:
            lines = [f"{', '.join(labels)}: {protocol.printable(str(value))}" for value, labels in found.items()]
            raise FederationError(f"the clients do not have the same {what}; make them alike:\n  " + "\n  ".join(lines))


def _roster(known: Mapping[int, Identity], config: RunConfig) -> list[Client]:
    roles = dict.fromkeys(config.sources, SOURCE) | dict.fromkeys(config.targets, TARGET)
    order = {domain: position for position, domain in enumerate(roles)}
    roster: dict[tuple[int, int], Client] = {}
    for node_id, identity in known.items():
        label, role = identity.label, roles.get(identity.domain)
        if role is None:
            logger.warning("client %s takes no part in this run: not one of its domains", label)
            continue
        if identity.role != role:
            raise FederationError(
                f"client {label}: the run has it as {role}, the node as {identity.role}; start the node with the role "
                "that the run gives it"
            )
        for holding in identity.holdings:
            if roles.get(holding.domain) != role:
                raise FederationError(
                    f"client {label}: it holds examples of {holding.domain}, which is no {role} domain of the run; "
                    "start the node with the run's domains"
                )
        place = (order[identity.domain], identity.client)
        if place in roster:
            nodes = f"{roster[place].node_id} and {node_id}"
            raise FederationError(f"two nodes are client {label}, {nodes}; stop one of them")
        roster[place] = Client(node_id, identity)
    ordered = [roster[place] for place in sorted(roster)]
    _check_alike(ordered)
    there = [client for client in ordered if client.identity.role == SOURCE]
    if len(there) > config.source_clients:
        names = ", ".join(f"{client.label} (node {client.node_id})" for client in there)
        raise FederationError(
            f"{len(there)} nodes are source clients, the run has {config.source_clients}; stop one of {names}"
        )
    return ordered
