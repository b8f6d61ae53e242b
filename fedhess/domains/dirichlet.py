"""Divide labelled examples by flwr-datasets' Dirichlet partitioner; a module of its own since that imports slowly."""

import warnings
from collections.abc import Sequence

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

from fedhess.base.seeds import derive_seed


def dirichlet_positions(
    labels: Sequence[int], *, clients: int, alpha: float, least: int, key: tuple[str | int, ...]
) -> list[list[int]]:
    """Divide examples among clients: each class by proportions drawn from a symmetric Dirichlet distribution.

    Args:
        labels: Class of each example.
        clients: Number of clients.
        alpha: Concentration of the distribution, positive.
        least: Examples that every client must get; the draw is repeated up to ten times until they do.
        key: What names the draw.

    Returns:
        By client, positions in ``labels``.

    Raises:
        ValueError: No draw gave every client enough, or there are fewer examples than clients.
    """
    partitioner = DirichletPartitioner(
        num_partitions=clients,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=least,
        self_balancing=False,
        shuffle=False,
        seed=derive_seed(*key),
    )
    partitioner.dataset = Dataset.from_dict({"label": list(labels), "position": list(range(len(labels)))})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified min_partition_size")  # it says so again if it gives up
        return [list(partitioner.load_partition(client)["position"]) for client in range(clients)]
