"""What one client holds under the run's partition: its examples of one domain, or of several."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from fedhess.base.errors import UsageError
from fedhess.base.files import digest_of
from fedhess.domains.benchmark import SOURCE
from fedhess.domains.partition import Examples, Share, share_out
from fedhess.domains.split import SplitRule
from fedhess.federation.protocol import Held, Identity
from fedhess.models.prepared import DOMAINS_KEPT, DataKey, LocalDomain, data_key, domain_split, local_domain, prepared
from fedhess.settings.partition import PartitionSettings
from fedhess.settings.run_config import RunConfig

CLIENTS_KEPT = 12  # each may keep its full batch; opening one again costs little

ShareKey = tuple[PartitionSettings, tuple[DataKey, ...]]


@dataclass(frozen=True)
class LocalClient:
    """One client's examples by domain, in domain order, its main domain and its number among that domain's clients."""

    domain: str
    client: int
    parts: Mapping[str, LocalDomain]

    @property
    def key(self) -> tuple[str | int, ...]:
        """Key that distinguishes this client from the others of the process."""
        return (self.domain, self.client, *next(iter(self.parts.values())).key)

    @property
    def training_parts(self) -> dict[str, LocalDomain]:
        """The parts with an example to train on."""
        return {domain: part for domain, part in self.parts.items() if part.train_size}

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return sum(part.train_size for part in self.parts.values())

    def identity(self, role: str) -> Identity:
        """Return what this client replies to ``identify``."""
        held = tuple(Held(name, part.train_size, len(part.evaluate_indices)) for name, part in self.parts.items())
        return Identity(
            self.domain,
            role,
            self.client,
            train_examples=self.train_size,
            evaluate_examples=sum(own.evaluate_examples for own in held),
            holds_out=all(part.holds_out for part in self.parts.values()),
            several=() if list(self.parts) == [self.domain] else held,
            data_digest=self.data_digest,
        )

    @property
    def data_digest(self) -> str:
        """Digest of its domains' data, 16 characters: it changes when any example or label does."""
        return digest_of(part.data.digest for part in self.parts.values())[:16]


class NotInRunError(UsageError):
    """The node is not a client of the run: the run does not have its domain, or its number in the domain."""


def local_client(config: RunConfig, *, domain: str, role: str, client: int) -> LocalClient:
    """Open a client's examples by its main domain and its number there; they are kept for the next messages.

    Raises:
        NotInRunError: The partition has no such client.
        UsageError: There are too few examples for so many clients.
    """
    if role != SOURCE:
        return LocalClient(domain, client, {domain: local_domain(config, domain=domain, role=role)})
    mixed = config.partition == "lambda"
    key = _share_key(config, config.sources if mixed else (domain,))
    return _local_client(key, rule=config.split, domain=domain, client=client, dtype=config.torch_dtype)


def source_shares(config: RunConfig) -> Mapping[tuple[str, int], Share]:
    """Return the clients' shares of the source domains by main domain and number, in the order of simulated nodes."""
    return _shares(_share_key(config, config.sources), rule=config.split)


def source_examples(config: RunConfig) -> dict[str, Examples]:
    """Return labels and split of the run's source domains."""
    return {name: domain_split(data_key(config, name), rule=config.split) for name in config.sources}


def simulated_client(config: RunConfig, position: int) -> tuple[str, int]:
    """Return the main domain and the number of the source client at a position among the simulated nodes.

    No data is opened for it unless the partition mixes domains.
    """
    if config.partition == "lambda":
        return list(source_shares(config))[position]
    number, client = divmod(position, config.source_clients // len(config.sources))
    return config.sources[number], client


def forget_clients() -> None:
    """Drop the clients that this process holds."""
    _shares.cache_clear()
    _local_client.cache_clear()


def _share_key(config: RunConfig, domains: tuple[str, ...]) -> ShareKey:
    return config.partition_settings, tuple(data_key(config, domain) for domain in domains)


@lru_cache(maxsize=DOMAINS_KEPT)
def _shares(key: ShareKey, *, rule: SplitRule) -> dict[tuple[str, int], Share]:
    settings, data_keys = key
    examples = {data.domain: domain_split(data, rule=rule) for data in data_keys}
    return {(share.domain, share.client): share for share in share_out(settings, examples, seed=data_keys[0].seed)}


@lru_cache(maxsize=CLIENTS_KEPT)
def _local_client(key: ShareKey, *, rule: SplitRule, domain: str, client: int, dtype: torch.dtype) -> LocalClient:
    share = _shares(key, rule=rule).get((domain, client))
    if share is None:
        raise NotInRunError(
            f"this node is client {client} of domain {domain!r}, which the run's partition does not have; start it "
            "with another client number, or give the run more clients"
        )
    parts = {}
    for data in key[1]:
        if data.domain in share.holdings:
            holding, main = share.holdings[data.domain], data.domain == domain
            parts[data.domain] = LocalDomain(
                prepared(data),
                train_indices=holding.train,
                evaluate_indices=holding.evaluate,
                key=(data.seed, data.domain, client) if main else (data.seed, data.domain, domain, client),
                device=torch.device(data.device),
                dtype=dtype,
            )
    return LocalClient(domain, client, parts)
