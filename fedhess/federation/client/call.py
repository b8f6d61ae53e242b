"""Which client of a run a node is, what every request except ``identify`` contains, and the data held for it."""

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from fedhess.base.environment import resolve_device
from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_globally
from fedhess.base.transfers import copy_together
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation import protocol
from fedhess.federation.client.answers import Protection
from fedhess.federation.client.examples import LocalClient, NotInRunError, local_client, simulated_client
from fedhess.federation.client.limits import check_batches, check_run
from fedhess.federation.client.memory import MEMORY, ReceivedModel
from fedhess.federation.client.privacy import Mechanism, private_identity
from fedhess.federation.client.training import Holding
from fedhess.federation.protocol import Identity
from fedhess.federation.run_settings import settings_of_run
from fedhess.federation.tensors import decode_tensors
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig


def run_settings(context: Context) -> RunConfig:
    """Return the settings of the run that a message belongs to, as they are on this node."""
    return _parsed(tuple(context.run_config.items()), tuple(context.node_config.items()))


@lru_cache(maxsize=64)
def _parsed(run_config: tuple[tuple[str, Scalar], ...], node_config: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    own = dict(node_config)
    if "domain" in own:  # a deployed node; simulated nodes belong to this process
        check_run(RunConfig.given_in(dict(run_config)), own)
    config = settings_of_run(dict(run_config), own)
    resolve_device(config.device)  # not checked yet, since the server may not have this device
    return config


def is_simulated(context: Context) -> bool:
    """Whether this node is a simulation's: a deployed one is started with its domain."""
    return "domain" not in context.node_config


class Place(NamedTuple):
    """A node's (main) domain, its role, and its number among the source clients of the domain."""

    domain: str
    role: str
    client: int


def place(config: RunConfig, context: Context) -> Place:
    """Return which domain this node holds, which role it plays, and which of the domain's clients it is.

    A deployed node is started with ``domain`` in its node config, and with ``client`` if it is not the domain's first.
    A simulated node has a ``partition-id``, which counts the run's source clients, then its targets. A node started
    with ``role="target"`` stays a target whatever the run's settings.

    Raises:
        NotInRunError: The node's domain is not part of the run, or the node config names neither domain nor partition.
        UsageError: The simulation has fewer nodes than the run has clients.
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
            # A simulation may have spare nodes, and a foreign node may have no domain.
            raise NotInRunError(f"the node config has no domain, and its partition-id is {position!r}; add domain=NAME")
        if position < config.source_clients:
            domain, client = simulated_client(config, position)
        else:
            domain = config.targets[position - config.source_clients]
    if domain not in (*config.sources, *config.targets):
        names = ", ".join((*config.sources, *config.targets))
        raise NotInRunError(f"this node holds domain {domain!r}; the run has {names}")
    assert isinstance(client, int), "checked by check_node"
    is_source = domain in config.sources and context.node_config.get("role", SOURCE) == SOURCE
    return Place(str(domain), SOURCE if is_source else TARGET, client)


def seeded_for_round(config: RunConfig, domain: str, client: int, server_round: object) -> AbstractContextManager[None]:
    """Seed torch's global generators by (seed, domain, client, round), for code that draws from them."""
    return seeded_globally(config.seed, "client", domain, client, str(server_round), device=config.device)


class Call(NamedTuple):
    """A request, opened."""

    config: RunConfig
    data: LocalClient
    role: str
    received: ReceivedModel
    server_round: int
    content: RecordDict
    mechanism: Mechanism | None  # of a source client of a private run

    def seeded(self) -> AbstractContextManager[None]:
        """Seed torch's global generators as at the beginning of the message; restore them afterwards."""
        return seeded_for_round(self.config, self.data.domain, self.data.client, self.server_round)

    def tensors(self, record: str) -> dict[str, Tensor] | None:
        """Read tensors of the message onto the device; None where it has no such record."""
        arrays = self.content.array_records.get(record)
        return None if arrays is None else on_device(self.config.device, decode_tensors(arrays))

    def wants(self, what: str) -> bool:
        """Whether the message asks for something that replies do not contain by default."""
        return bool(self.content.config_records[protocol.CONFIG].get(what, False))


def own_data(config: RunConfig, context: Context) -> tuple[LocalClient, str]:
    """Open what this node holds, and return it with the node's role."""
    domain, role, client = place(config, context)
    data = local_client(config, domain=domain, role=role, client=client)
    if role == SOURCE:
        counts = [part.train_size for part in data.training_parts.values()]
        held_out = [len(part.evaluate_indices) for part in data.parts.values()]
        check_batches(config, counts, held_out, context.node_config)
    return data, role


def sent_identity(config: RunConfig, context: Context, data: LocalClient, role: str) -> Identity:
    """Return the identity that the server is told; without the digest of the data if replies are protected."""
    protection = Protection.of(context.node_config, role)
    if config.is_private and role == SOURCE:
        return private_identity(data.identity(role), simulated=is_simulated(context))
    if protection.is_off:
        return data.identity(role)
    return replace(data.identity(role), data_digest="", protection=(protection.rounding, protection.epsilon))


def open_call(message: Message, context: Context) -> Call:
    """Read a message and open its model and data; ``UsageError`` if it is incomplete or the data has changed."""
    config = run_settings(context)
    record = message.content.config_records.get(protocol.CONFIG, ConfigRecord())
    model_id, server_round = record.get(protocol.MODEL_ID), record.get(protocol.ROUND)
    if not isinstance(model_id, str) or not isinstance(server_round, int):
        raise UsageError(f"expected {protocol.MODEL_ID} and {protocol.ROUND} in the message, got {sorted(record)}")
    received = MEMORY.receive(model_id, message.content.array_records.get(protocol.MODEL), device=config.device)
    data, role = own_data(config, context)
    began_with, sent = str(record.get(protocol.DATA_DIGEST, "")), sent_identity(config, context, data, role).data_digest
    if began_with and sent and began_with != sent:
        raise UsageError(
            f"the data of {data.domain} has changed since the run began: digest {sent}, was {began_with}; put it back, "
            "or begin another run"
        )
    mechanism = None
    if config.is_private and role == SOURCE:
        mechanism = Mechanism(config, (data.domain, data.client, server_round) if is_simulated(context) else None)
    return Call(config, data, role, received, server_round, message.content, mechanism)


def holdings(call: Call) -> list[Holding]:
    """Return what the client trains on: all of its domains, or those that the server names, each with its weight."""
    identity = call.data.identity(SOURCE)
    record = call.content.config_records[protocol.CONFIG]
    weights = {domain: float(part.train_size) for domain, part in call.data.training_parts.items()}
    domains, by_server = record.get(protocol.TRAIN_DOMAINS), record.get(protocol.TRAIN_WEIGHTS)
    if isinstance(domains, list) and isinstance(by_server, list):
        named = dict(zip(map(str, domains), map(float, by_server), strict=True))
        weights = {domain: named.get(domain, 0.0) for domain in weights}
    total = sum(weights.values())
    shared = call.tensors(protocol.REFERENCE) or {}
    own = {}
    if identity.several:
        own = {domain: call.tensors(identity.key(protocol.REFERENCE, domain)) or {} for domain in weights}
    return [
        Holding(call.data.parts[domain], weight / total, shared | own.get(domain, {}))
        for domain, weight in weights.items()
        if weight > 0
    ]


def on_device(device: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy a message's tensors to the device, but single integers (a count, a seed) to the host's memory.

    There a strategy reads them without waiting for the device, and can compute with them on any device.
    """
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 0 and not tensor.is_floating_point()}
    others = {name: tensor for name, tensor in tensors.items() if name not in numbers}
    return copy_together(others, torch.device(device)) | copy_together(numbers, torch.device("cpu"))
