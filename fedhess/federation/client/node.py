"""Which client of a run a node is."""

from typing import NamedTuple

from flwr.app import Context

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.client.examples import simulated_client
from fedhess.settings.run_config import RunConfig


def is_simulated(context: Context) -> bool:
    """Whether this node is a simulation's: a deployed one is started with its domain."""
    return "domain" not in context.node_config


class NotInRunError(UsageError):
    """The node holds a domain that the run does not have."""


class Place(NamedTuple):
    """A node's (main) domain, its role, and its number among the source clients of the domain."""

    domain: str
    role: str
    client: int


def place(config: RunConfig, context: Context) -> Place:
    """Return which domain this node holds, which role it plays, and which of the domain's clients it is.

    A deployed node is started with ``domain`` in its node config, and ``client`` where it is not the domain's first. A
    simulated one has a ``partition-id``, which counts the run's source clients, then its targets. A node started with
    ``role="target"`` stays one whatever the run's settings.

    Raises:
        NotInRunError: The node's domain is not part of the run.
        UsageError: The node config names neither domain nor partition, or a client number below 0.
    """
    domain, client = context.node_config.get("domain"), context.node_config.get("client", 0)
    if is_simulated(context):
        position, nodes = context.node_config.get("partition-id"), config.source_clients + len(config.targets)
        count = context.node_config.get("num-partitions", nodes)
        if isinstance(count, int) and count < nodes:
            raise UsageError(
                f"the simulation has {count} nodes, the run {nodes} clients of {', '.join(config.sources)} and targets "
                f"{', '.join(config.targets)}; run it with --federation-config 'num-supernodes={nodes}'"
            )
        if not isinstance(position, int) or not 0 <= position < nodes:
            kind = NotInRunError if isinstance(position, int) else UsageError  # a simulation may have nodes to spare
            raise kind(f"the node config has no domain, and its partition-id is {position!r}; add domain=NAME")
        if position < config.source_clients:
            domain, client = simulated_client(config, position)
        else:
            domain = config.targets[position - config.source_clients]
    if domain not in (*config.sources, *config.targets):
        names = ", ".join((*config.sources, *config.targets))
        raise NotInRunError(f"this node holds domain {domain!r}; the run has {names}")
    if not isinstance(client, int) or client < 0:
        raise UsageError(f"the node config's client is {client!r}; expected its number among the domain's, from 0")
    is_source = domain in config.sources and context.node_config.get("role", SOURCE) == SOURCE
    return Place(str(domain), SOURCE if is_source else TARGET, client)
