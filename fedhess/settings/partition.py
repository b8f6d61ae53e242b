"""The settings that say how the source domains are shared among clients: which go together, and what they mean."""

from dataclasses import dataclass
from typing import Literal

Partition = Literal["domain", "lambda", "dirichlet"]

# The partition that each setting belongs to.
_OWNERS = {
    "clients": "lambda",
    "heterogeneity": "lambda",
    "clients_per_domain": "dirichlet",
    "dirichlet_alpha": "dirichlet",
    "dirichlet_min_size": "dirichlet",
}


@dataclass(frozen=True)
class PartitionSettings:
    """How the source domains are shared among clients; ``RunConfig`` has the same settings and describes them."""

    partition: Partition = "domain"
    clients: int = 0
    heterogeneity: float = 0.0
    clients_per_domain: int = 0
    dirichlet_alpha: float = 0.5
    dirichlet_min_size: int = 10

    def source_clients(self, domains: int) -> int:
        """Return the number of source clients, given the number of source domains.

        >>> PartitionSettings("dirichlet", clients_per_domain=5).source_clients(3)
        15
        """
        by_partition = {"lambda": self.clients, "dirichlet": self.clients_per_domain * domains}
        return by_partition.get(self.partition, domains)

    def check_together(self) -> None:
        """Raise ``ValueError`` where the settings do not go together."""
        left_out = PartitionSettings()
        for name, owner in _OWNERS.items():
            value = getattr(self, name)
            if value != getattr(left_out, name) and self.partition != owner:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option}: it belongs to --partition {owner}, got {value:g} with --partition {self.partition}"
                )
        if self.partition == "lambda" and self.clients == 0:
            raise ValueError(
                "--partition lambda: expected --clients, the number of clients that share the domains; got none"
            )
        if self.partition == "dirichlet" and self.clients_per_domain == 0:
            raise ValueError(
                "--partition dirichlet: expected --clients-per-domain, the clients that share a domain; got none"
            )

    def describe(self) -> str:
        """Describe in a few words who the clients are; nothing for one client a domain."""
        return {
            "domain": "",
            "lambda": f"{self.clients} clients, heterogeneity lambda {self.heterogeneity:g}",
            "dirichlet": f"{self.clients_per_domain} clients a domain, Dirichlet alpha {self.dirichlet_alpha:g}",
        }[self.partition]
