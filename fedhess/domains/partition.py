"""Share the examples of the source domains among clients: labels and counts in, lists of indices out.

Three ways: one client a domain; N clients over all domains with the heterogeneity lambda of Bai et al.; K clients a
domain whose labels follow a Dirichlet distribution. Every training example, and every held-out one, belongs to exactly
one client; who gets which depends on the seed and the domains' names alone. The split into training and held-out
examples is made before, for each domain as a whole, so that it does not depend on the partition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_generator


@dataclass(frozen=True)
class Examples:
    """The examples of one source domain, split.

    Attributes:
        labels: (N,) class of every example.
        train: Indices that are trained on.
        evaluate: Indices that are held out; the same as ``train`` where nothing is held out.
    """

    labels: Tensor
    train: Tensor
    evaluate: Tensor

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation examples are kept out of training."""
        return not torch.equal(self.train, self.evaluate)


@dataclass(frozen=True)
class Holding:
    """What one client holds of one domain.

    Attributes:
        train: Indices in the domain, ascending.
        evaluate: The same for evaluation.
    """

    train: Tensor
    evaluate: Tensor


@dataclass(frozen=True)
class Share:
    """What one client holds.

    Attributes:
        domain: Its main domain, which names it.
        client: Its number among the clients with that main domain, from 0.
        holdings: Its part of every domain of which it has an example, in domain order.
    """

    domain: str
    client: int
    holdings: Mapping[str, Holding] = field(repr=False)

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return sum(len(holding.train) for holding in self.holdings.values())


def partition_by_domain(examples: Mapping[str, Examples]) -> list[Share]:
    """Give each domain to one client."""
    return [Share(name, 0, {name: Holding(own.train, own.evaluate)}) for name, own in examples.items()]


def partition_by_lambda(
    examples: Mapping[str, Examples], *, clients: int, heterogeneity: float, seed: int
) -> list[Share]:
    """Share all domains among N clients: lambda 1 makes them all alike, lambda 0 gives each a single domain.

    Client i gets, of the n_d training examples of domain d,

        n_d ((1 - lambda) s_id + lambda / N)

    with s_id its share of d as a main domain (:func:`main_shares`), rounded by :func:`apportion`. Held-out examples are
    shared by the same formula with their own counts. Source: Bai, Bagchi, Inouye, "Benchmarking Algorithms for
    Federated Domain Generalization", ICLR 2024, section 4 and the released code. Deviation: there, what rounding down
    leaves of a domain goes to the first clients; here to the largest remainders, among equals to whoever has least.

    Args:
        examples: By source domain, in domain order.
        clients: N.
        heterogeneity: lambda, in [0, 1].
        seed: Of the run.

    Returns:
        The clients, by main domain in domain order.

    Raises:
        UsageError: There are so many clients that one would have nothing to train on.
    """
    names = list(examples)
    sizes = [len(own.train) for own in examples.values()]
    shares = main_shares(sizes, clients)
    counts = lambda_counts(sizes, shares, heterogeneity=heterogeneity)
    if not all(map(sum, counts)):
        raise UsageError(
            f"--clients {clients}: the {sum(sizes)} training examples of {', '.join(names)} leave "
            f"{sum(not sum(row) for row in counts)} clients with nothing to train on; expected fewer clients"
        )
    held = lambda_counts([len(own.evaluate) for own in examples.values()], shares, heterogeneity=heterogeneity)
    parts: list[dict[str, Holding]] = [{} for _ in range(clients)]
    for d, (name, own) in enumerate(examples.items()):
        train = _cut(own.train, [row[d] for row in counts], key=(seed, "partition", name, "train"))
        evaluate = train
        if own.holds_out:
            evaluate = _cut(own.evaluate, [row[d] for row in held], key=(seed, "partition", name, "held out"))
        for client in range(clients):
            if len(train[client]) or len(evaluate[client]):
                parts[client][name] = Holding(train[client], evaluate[client])
    return _numbered(names, [_main_domain(row, sizes) for row in shares], parts)


def partition_by_dirichlet(
    examples: Mapping[str, Examples], *, clients_per_domain: int, alpha: float, least: int, seed: int
) -> list[Share]:
    """Share each domain among K clients whose labels differ: every class is divided by a draw from Dirichlet(alpha).

    The division is that of flwr-datasets' ``DirichletPartitioner`` (without self-balancing) on the domain's training
    examples. A class's held-out examples are shared in proportion to its training examples.

    Args:
        examples: By source domain, in domain order.
        clients_per_domain: K.
        alpha: Concentration, positive: the smaller, the fewer classes a client has.
        least: Training examples that every client must get; the draw is repeated up to ten times until they do.
        seed: Of the run.

    Raises:
        UsageError: A domain has too few examples, or ten draws did not give every client enough.
    """
    shares: list[Share] = []
    for name, own in examples.items():
        train = _dirichlet(name, own, clients_per_domain, alpha=alpha, least=least, seed=seed)
        evaluate = _in_proportion(name, own, train, seed=seed) if own.holds_out else train
        holdings = [Holding(*pair) for pair in zip(train, evaluate, strict=True)]
        shares += [Share(name, client, {name: holding}) for client, holding in enumerate(holdings)]
    return shares


def main_shares(sizes: Sequence[int], clients: int) -> list[list[Fraction]]:
    """Say how much of each domain each client has as a main domain.

    With at least as many clients as domains each client has one main domain and its clients share it equally: every
    domain begins with one client, and one more goes to the domain with the most examples per client until there are
    enough. With fewer clients whole domains, the largest first, go to the client with the fewest examples so far.

    Args:
        sizes: Examples of each domain.
        clients: N.

    Returns:
        A row a client and a column a domain; every column adds up to 1. Rows by main domain, in domain order.

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
        rows = sorted(owned, key=lambda mine: mine[0])  # of its domains each was given the largest first
        return [[Fraction(d in mine) for d in domains] for mine in rows]
    mains = [1] * len(sizes)
    for _ in range(clients - len(sizes)):
        mains[max(domains, key=lambda d: Fraction(sizes[d], mains[d]))] += 1
    return [[Fraction(d == main, mains[main]) for d in domains] for main in domains for _ in range(mains[main])]


def lambda_counts(
    sizes: Sequence[int], shares: Sequence[Sequence[Fraction]], *, heterogeneity: float
) -> list[list[int]]:
    """Compute how many examples of each domain each client gets; computed in fractions, so that sums are exact.

    Args:
        sizes: Examples of each domain.
        shares: From :func:`main_shares`.
        heterogeneity: lambda, in [0, 1].

    Returns:
        A row a client and a column a domain; every column adds up to the domain's size.

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
    """Round quotas to whole numbers with the same sum, by largest remainder.

    Args:
        total: The sum of the quotas.
        quotas: Non-negative fractions.
        so_far: What each has already; among equal remainders whoever has least comes first, then whoever is named
            first.

    >>> apportion(4, [Fraction(3, 2), Fraction(3, 2), Fraction(1)])
    [2, 1, 1]
    """
    counts = [int(quota) for quota in quotas]
    has = [0] * len(counts) if so_far is None else so_far
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], has[i] + counts[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def batch_sizes(counts: Sequence[int], batch_size: int) -> list[int]:
    """Divide a batch among a client's domains: in proportion to its examples of each, but at least one of each.

    Args:
        counts: Training examples of each domain, none of them 0.
        batch_size: Examples of the batch, at least the number of domains; 0 for all.

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


def _main_domain(row: Sequence[Fraction], sizes: Sequence[int]) -> int:
    """Give the domain of which a client has most as a main domain."""
    return max(range(len(row)), key=lambda d: row[d] * sizes[d])


def _numbered(names: Sequence[str], mains: Sequence[int], parts: Sequence[Mapping[str, Holding]]) -> list[Share]:
    return [Share(names[main], mains[:position].count(main), parts[position]) for position, main in enumerate(mains)]


def _cut(indices: Tensor, counts: Sequence[int], *, key: tuple[str | int, ...]) -> list[Tensor]:
    """Shuffle indices and cut them into parts, each ascending."""
    order = torch.randperm(len(indices), generator=seeded_generator(*key))
    return [part.sort().values for part in torch.split(indices[order], list(counts))]


def _dirichlet(name: str, own: Examples, clients: int, *, alpha: float, least: int, seed: int) -> list[Tensor]:
    from fedhess.domains.dirichlet import dirichlet_positions  # noqa: PLC0415 - datasets takes seconds to import

    try:
        positions = dirichlet_positions(
            own.labels[own.train].tolist(), clients=clients, alpha=alpha, least=least, key=(seed, "partition", name)
        )
    except ValueError as error:
        raise UsageError(
            f"--clients-per-domain {clients}: the {len(own.train)} training examples of {name!r} cannot be shared so "
            f"that each client has at least {least} (--dirichlet-min-size) with --dirichlet-alpha {alpha:g}: {error} "
            "Take fewer clients, a larger alpha or a smaller least size"
        ) from None
    return [own.train[torch.tensor(part, dtype=torch.int64)].sort().values for part in positions]


def _in_proportion(name: str, own: Examples, train: Sequence[Tensor], *, seed: int) -> list[Tensor]:
    """Share the held-out examples of each class like its training examples; of a class without any, like all."""
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
