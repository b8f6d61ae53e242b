"""Turn the settings of a run into its partition, and check that its clients can train."""

from collections.abc import Mapping, Sequence

from fedhess.base.errors import UsageError
from fedhess.domains import Benchmark, split_domain
from fedhess.domains.partition import Examples, Share, partition_by_dirichlet, partition_by_domain, partition_by_lambda
from fedhess.domains.split import SplitRule
from fedhess.settings.partition import PartitionSettings


def read_examples(benchmark: Benchmark, sources: Sequence[str], *, rule: SplitRule, seed: int) -> dict[str, Examples]:
    """Read labels and split of source domains, without preparing their inputs for a model."""
    examples: dict[str, Examples] = {}
    for domain in sources:
        data = benchmark.load(domain)
        position = benchmark.domains.index(domain)
        split = split_domain(data, rule=rule, holdout=benchmark.holdout, seed=seed, position=position)
        examples[domain] = Examples(data.labels, *split)
    return examples


def share_out(settings: PartitionSettings, examples: Mapping[str, Examples], *, seed: int) -> list[Share]:
    """Share the examples of source domains among clients.

    Args:
        settings: How.
        examples: By source domain, in domain order.
        seed: Of the run.

    Returns:
        The clients, by main domain in domain order.

    Raises:
        UsageError: There are too few examples for so many clients.
    """
    if settings.partition == "lambda":
        return partition_by_lambda(examples, clients=settings.clients, heterogeneity=settings.heterogeneity, seed=seed)
    if settings.partition == "dirichlet":
        return partition_by_dirichlet(
            examples,
            clients_per_domain=settings.clients_per_domain,
            alpha=settings.dirichlet_alpha,
            least=settings.dirichlet_min_size,
            seed=seed,
        )
    return partition_by_domain(examples)


def require_room_for_domains(shares: Sequence[Share], *, batch_size: int) -> None:
    """Insist that a batch has room for an example of each domain that a client trains on.

    Raises:
        UsageError: A client trains on more domains than a batch has examples.
    """
    most = max(sum(len(holding.train) > 0 for holding in share.holdings.values()) for share in shares)
    if 0 < batch_size < most:
        raise UsageError(
            f"--batch-size: expected at least {most}, since a client holds {most} domains and trains on each in every "
            f"step; got {batch_size}"
        )
