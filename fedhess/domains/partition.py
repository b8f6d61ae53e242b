"""Share the examples of the source domains among clients: labels and counts in, lists of indices out.

There are three schemes: one client per domain; N clients over all domains with the heterogeneity lambda of Bai et al.;
K clients per domain whose labels follow a Dirichlet distribution. Every training and every held-out example belongs to
exactly one client. The assignment depends on the seed and the domains' names alone. Each domain is split into training
and held-out examples beforehand, so that the split does not depend on the partition.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.seeds import derive_seed, seeded_generator
from fedhess.domains.benchmark import SOURCE, Benchmark
from fedhess.domains.split import SplitRule, is_for_role, split_domain
from fedhess.settings.partition import PartitionSettings


@dataclass(frozen=True)
class Examples:
    """The examples of one source domain, split."""

    labels: Tensor  # (N,) class of every example
    train: Tensor  # indices that are trained on
    evaluate: Tensor  # indices that are held out; the same as train where nothing is held out

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation examples are kept out of training."""
        return not torch.equal(self.train, self.evaluate)


@dataclass(frozen=True)
class Holding:
    """The examples of one domain that one client holds, as ascending indices."""

    train: Tensor
    evaluate: Tensor


@dataclass(frozen=True)
class Share:
    """What one client holds."""

    domain: str  # its main domain, which names it
    client: int  # its number among the clients with that main domain, from 0
    # Its part of each domain, in domain order; domains without an example are left out
    holdings: Mapping[str, Holding] = field(repr=False)

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return sum(len(holding.train) for holding in self.holdings.values())


def read_examples(benchmark: Benchmark, sources: Sequence[str], *, rule: SplitRule, seed: int) -> dict[str, Examples]:
    """Read labels and split of source domains, without preparing their inputs for a model."""
    examples: dict[str, Examples] = {}
    for domain in sources:
        data, position = benchmark.load(domain), benchmark.domains.index(domain)
        split = split_domain(data, rule=rule, holdout=benchmark.holdout, seed=seed, position=position)
        examples[domain] = Examples(data.labels, *(part[is_for_role(data, SOURCE)[part]] for part in split))
    return examples


def share_out(settings: PartitionSettings, examples: Mapping[str, Examples], *, seed: int) -> list[Share]:
    """Share the examples of source domains, in domain order, among clients, by main domain in the same order."""
    if settings.partition == "lambda":
        return _by_lambda(examples, settings, seed=seed)
    if settings.partition == "dirichlet":
        return _by_dirichlet(examples, settings, seed=seed)
    return [Share(name, 0, {name: Holding(own.train, own.evaluate)}) for name, own in examples.items()]


def require_room_for_domains(shares: Sequence[Share], *, batch_size: int) -> None:
    """Check that a batch has room for an example of each domain that a client trains on."""
    most = max(sum(len(holding.train) > 0 for holding in share.holdings.values()) for share in shares)
    if 0 < batch_size < most:
        raise UsageError(
            f"--batch-size: expected at least {most}, since a client holds {most} domains and trains on each in every "
            f"step; got {batch_size}"
        )


def batch_sizes(counts: Sequence[int], batch_size: int) -> list[int]:
    """Divide a batch among a client's domains: in proportion to its examples of each, but at least one of each.

    ``batch_size`` is at least the number of domains, or 0 for all examples; no count is 0.

    >>> batch_sizes([90, 9, 1], 10), batch_sizes([90, 9, 1], 0)
    ([8, 1, 1], [0, 0, 0])
    """
    if batch_size == 0:
        return [0] * len(counts)
    free = batch_size - len(counts)
    assert free >= 0, f"a batch of {batch_size} for {len(counts)} domains"
    spare = [max(Fraction(batch_size * count, sum(counts)) - 1, Fraction(0)) for count in counts]
    if not any(spare):
        return [1] * len(counts)
    return [1 + more for more in apportion(free, [free * share / sum(spare) for share in spare])]


# ---- N clients over all domains --------------------------------------------------------------------------------------


def _by_lambda(examples: Mapping[str, Examples], settings: PartitionSettings, *, seed: int) -> list[Share]:
    """Share all domains among N clients: lambda 1 makes them all alike, lambda 0 gives each a single domain.

    Of the n_d training examples of domain d, client i gets

        n_d ((1 - lambda) s_id + lambda / N)

    with s_id its share of d as a main domain (:func:`main_shares`), rounded by :func:`apportion`. Held-out examples are
    shared by the same formula with their own counts. Source: Bai, Bagchi, Inouye, "Benchmarking Algorithms for
    Federated Domain Generalization", ICLR 2024, section 4 and the released code. Deviation: there, the rest after
    rounding down goes to the first clients; here to the largest remainders, and among equals to the client with least.
    """
    names = list(examples)
    sizes = [len(own.train) for own in examples.values()]
    shares = main_shares(sizes, settings.clients)
    counts = lambda_counts(sizes, shares, heterogeneity=settings.heterogeneity)
    if not all(map(sum, counts)):
        raise UsageError(
            f"--clients {settings.clients}: the {sum(sizes)} training examples of {', '.join(names)} leave "
            f"{sum(not sum(row) for row in counts)} clients with nothing to train on; expected fewer clients"
        )
    held_sizes = [len(own.evaluate) for own in examples.values()]
    held = lambda_counts(held_sizes, shares, heterogeneity=settings.heterogeneity)
    parts: list[dict[str, Holding]] = [{} for _ in shares]
    for d, (name, own) in enumerate(examples.items()):
        train = evaluate = _cut(own.train, [row[d] for row in counts], key=(seed, "partition", name, "train"))
        if own.holds_out:
            evaluate = _cut(own.evaluate, [row[d] for row in held], key=(seed, "partition", name, "held out"))
        for part, own_train, own_evaluate in zip(parts, train, evaluate, strict=True):
            if len(own_train) or len(own_evaluate):
                part[name] = Holding(own_train, own_evaluate)
    mains = [names[max(range(len(names)), key=lambda d: row[d] * sizes[d])] for row in shares]
    return [Share(main, mains[:position].count(main), parts[position]) for position, main in enumerate(mains)]


def main_shares(sizes: Sequence[int], clients: int) -> list[list[Fraction]]:
    """Return the share of each domain that each client has as a main domain.

    With at least as many clients as domains, each client has one main domain, and the clients of a domain share it
    equally: every domain begins with one client, and each further client goes to the domain with the most examples per
    client. With fewer clients, whole domains, the largest first, go to the client with the fewest examples so far.

    Args:
        sizes: Examples of each domain.
        clients: N.

    Returns:
        A row per client and a column per domain; every column sums to 1. Rows by main domain, in domain order.

    >>> [[str(share) for share in row] for row in main_shares([30, 10], 3)]
    [['1/2', '0'], ['1/2', '0'], ['0', '1']]
    >>> [[str(share) for share in row] for row in main_shares([10, 30, 15], 2)]
    [['0', '1', '0'], ['1', '0', '1']]
    """
    domains = range(len(sizes))
    if clients < len(sizes):
        owned: list[list[int]] = [[] for _ in range(clients)]
        for d in sorted(domains, key=lambda d: -sizes[d]):
            min(owned, key=lambda mine: sum(sizes[other] for other in mine)).append(d)
        rows = sorted(owned, key=lambda mine: mine[0])  # the first of a client's domains is its largest
        return [[Fraction(d in mine) for d in domains] for mine in rows]
    mains = [1] * len(sizes)
    for _ in range(clients - len(sizes)):
        mains[max(domains, key=lambda d: Fraction(sizes[d], mains[d]))] += 1
    return [[Fraction(d == main, mains[main]) for d in domains] for main in domains for _ in range(mains[main])]


def lambda_counts(
    sizes: Sequence[int], shares: Sequence[Sequence[Fraction]], *, heterogeneity: float
) -> list[list[int]]:
    """Compute how many examples of each domain each client gets, with fractions so that sums are exact.

    Args:
        sizes: Examples of each domain; the column of a domain sums to its size.
        shares: From :func:`main_shares`; the result has the same rows and columns.
        heterogeneity: lambda, in [0, 1].

    >>> lambda_counts([30, 10], main_shares([30, 10], 3), heterogeneity=0.3)
    [[14, 1], [13, 1], [3, 8]]
    """
    weight = Fraction(str(heterogeneity))
    counts = [[0] * len(sizes) for _ in shares]
    for d, size in enumerate(sizes):
        quotas = [size * ((1 - weight) * row[d] + weight / len(shares)) for row in shares]
        for row, count in zip(counts, apportion(size, quotas, so_far=[sum(row) for row in counts]), strict=True):
            row[d] = count
    return counts


def apportion(total: int, quotas: Sequence[Fraction], *, so_far: Sequence[int] | None = None) -> list[int]:
    """Round non-negative quotas to whole numbers with the same sum, by largest remainder.

    Args:
        total: The sum of the quotas.
        quotas: Non-negative fractions.
        so_far: What each recipient already has; ties between remainders go to the one with least, then to the first.

    >>> apportion(4, [Fraction(3, 2), Fraction(3, 2), Fraction(1)])
    [2, 1, 1]
    """
    counts = [int(quota) for quota in quotas]
    has = so_far or [0] * len(counts)
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], has[i] + counts[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _cut(indices: Tensor, counts: Sequence[int], *, key: tuple[str | int, ...]) -> list[Tensor]:
    """Shuffle indices and cut them into parts, each ascending."""
    order = torch.randperm(len(indices), generator=seeded_generator(*key))
    return [part.sort().values for part in torch.split(indices[order], list(counts))]


# ---- K clients a domain ----------------------------------------------------------------------------------------------


def _by_dirichlet(examples: Mapping[str, Examples], settings: PartitionSettings, *, seed: int) -> list[Share]:
    """Share each domain among K clients whose labels differ: every class is divided by a draw from Dirichlet(alpha).

    The division is that of flwr-datasets' ``DirichletPartitioner`` (without self-balancing) on the domain's training
    examples. A class's held-out examples are shared in proportion to its training examples.
    """
    shares: list[Share] = []
    for name, own in examples.items():
        train = _dirichlet(name, own, settings, seed=seed)
        evaluate = _in_proportion(name, own, train, seed=seed) if own.holds_out else train
        holdings = map(Holding, train, evaluate)
        shares += [Share(name, client, {name: holding}) for client, holding in enumerate(holdings)]
    return shares


def _dirichlet(name: str, own: Examples, settings: PartitionSettings, *, seed: int) -> list[Tensor]:
    """Divide a domain's training examples: each class by proportions drawn from a symmetric Dirichlet distribution."""
    from datasets import Dataset  # noqa: PLC0415 - takes seconds
    from flwr_datasets.partitioner import DirichletPartitioner  # noqa: PLC0415

    clients, alpha, least = settings.clients_per_domain, settings.dirichlet_alpha, settings.dirichlet_min_size
    partitioner = DirichletPartitioner(
        num_partitions=clients,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=least,
        self_balancing=False,
        shuffle=False,
        seed=derive_seed(seed, "partition", name),
    )
    labels = own.labels[own.train].tolist()
    partitioner.dataset = Dataset.from_dict({"label": labels, "position": list(range(len(labels)))})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The specified min_partition_size")  # the error states it
            positions = [list(partitioner.load_partition(client)["position"]) for client in range(clients)]
    except ValueError as error:
        raise UsageError(
            f"--clients-per-domain {clients}: the {len(own.train)} training examples of {name!r} cannot be shared so "
            f"that each client has at least {least} (--dirichlet-min-size) with --dirichlet-alpha {alpha:g}: {error} "
            "Take fewer clients, a larger alpha or a smaller least size"
        ) from None
    return [own.train[torch.tensor(part, dtype=torch.int64)].sort().values for part in positions]


def _in_proportion(name: str, own: Examples, train: Sequence[Tensor], *, seed: int) -> list[Tensor]:
    """Share each class's held-out examples like its training examples; if it has none, like all training examples."""
    parts: list[list[Tensor]] = [[] for _ in train]
    given = [0] * len(train)
    for label in sorted(set(own.labels[own.evaluate].tolist())):
        members = own.evaluate[own.labels[own.evaluate] == label]
        weights = [int((own.labels[part] == label).sum()) for part in train]
        weights = weights if sum(weights) else [len(part) for part in train]
        quotas = [Fraction(len(members) * weight, sum(weights)) for weight in weights]
        counts = apportion(len(members), quotas, so_far=given)
        given = [before + count for before, count in zip(given, counts, strict=True)]
        cut = _cut(members, counts, key=(seed, "partition", name, "held out", label))
        for part, piece in zip(parts, cut, strict=True):
            part.append(piece)
    return [torch.cat(part).sort().values for part in parts]
