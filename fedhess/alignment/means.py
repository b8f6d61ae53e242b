"""Means over clients and domains, added up in domain order so that no result depends on the order of arrival."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from fedhess.alignment.robust import robust_mean


class WeightedMean:
    """A weighted mean of named tensors, added up one contribution at a time, in the order of the calls.

    Memory: one set of tensors, whatever the number of contributions.
    """

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add ``weight`` times the tensors; they are read, never kept.

        Raises:
            ValueError: The names differ from those of the first contribution, or the weight is negative.
        """
        if not weight >= 0:
            raise ValueError(f"expected a weight of at least 0, got {weight}")
        if not self._sum:
            self._sum = {name: tensor * weight for name, tensor in tensors.items()}
        elif self._sum.keys() != tensors.keys():
            raise ValueError(f"expected tensors {sorted(self._sum)}, got {sorted(tensors)}")
        else:
            for name, tensor in tensors.items():
                self._sum[name].add_(tensor, alpha=weight)
        self._weight += weight

    def result(self) -> dict[str, Tensor]:
        """Return the mean, zero if all weights are zero. This object must not be used again.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._sum:
            raise ValueError("nothing was added to this mean")
        if self._weight not in (0.0, 1.0):
            for tensor in self._sum.values():
                tensor.div_(self._weight)
        return self._sum


class RobustMean:
    """A mean with equal weights that a hostile minority cannot move at will; see :func:`robust_mean`.

    Memory: everything that was added.
    """

    def __init__(self, kind: str, hostile: int) -> None:
        self._kind, self._hostile = kind, hostile
        self._added: list[Mapping[str, Tensor]] = []

    def add(self, tensors: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add tensors, which are kept; the weight is ignored."""
        del weight
        self._added.append(tensors)

    def result(self) -> dict[str, Tensor]:
        """Return the mean."""
        return robust_mean(self._kind, self._added, hostile=self._hostile)


MeanRule = Callable[[], WeightedMean | RobustMean]  # makes an empty mean

MEAN: MeanRule = WeightedMean


def mean_rule(kind: str, *, hostile: int) -> MeanRule:
    """Return the rule of a kind: ``"mean"``, or a mean that is robust against ``hostile`` contributions."""
    return WeightedMean if kind == "mean" else partial(RobustMean, kind, hostile)


class DomainMeans:
    """One mean per domain over its clients, weighted by their examples of the domain and added up as they come.

    Memory: one set of tensors per domain, whatever the number of clients; those of all clients if the mean is robust.
    The mean over a single client has its values bit for bit.

    Args:
        domains: Domains in the order of the result.
        expected: For each client that may contribute, its examples by domain.
        rule: How the means are taken, separately for each name.

    Attributes:
        examples: Examples behind each mean so far, by domain.
    """

    def __init__(self, domains: Sequence[str], expected: Sequence[Mapping[str, int]], rule: MeanRule = MEAN) -> None:
        self._domains, self._rule = domains, rule
        self._means: dict[str, dict[str, WeightedMean | RobustMean]] = {}
        self._totals = {domain: sum(client.get(domain, 0) for client in expected) for domain in domains}
        self.examples: dict[str, int] = {}

    def add(self, domain: str, tensors: Mapping[str, Tensor], examples: int) -> None:
        """Add one client's values of a domain."""
        means = self._means.setdefault(domain, {name: self._rule() for name in tensors})
        for name, tensor in tensors.items():
            means[name].add({name: tensor}, examples / self._totals[domain])
        self.examples[domain] = self.examples.get(domain, 0) + examples

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Return the mean of every domain that has a client, in domain order. This object must not be used again."""
        there = [domain for domain in self._domains if domain in self._means]
        return {domain: {name: mean.result()[name] for name, mean in self._means[domain].items()} for domain in there}


class PerDomain(Mapping[str, Tensor]):
    """One statistic of every source domain that has a client in the round, in domain order.

    Args:
        values: The statistic by domain.
        weights: Weight of each domain in :meth:`mean`; equal unless the run weighs by examples.
        examples: Examples that the clients behind each value hold of its domain.
        rule: How :meth:`mean` is taken, also of values from :meth:`with_values`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        weights: Mapping[str, float],
        examples: Mapping[str, int],
        rule: MeanRule = MEAN,
    ) -> None:
        self._values, self.weights, self.examples, self._rule = dict(values), dict(weights), dict(examples), rule

    def __getitem__(self, domain: str) -> Tensor:
        return self._values[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def with_values(self, values: Mapping[str, Tensor]) -> "PerDomain":
        """Return other values of the same domains, with the same weights and rule."""
        return PerDomain({domain: values[domain] for domain in self._values}, self.weights, self.examples, self._rule)

    def mean(self) -> Tensor:
        """Average over the domains, summed in domain order."""
        mean = self._rule()
        for domain, value in self._values.items():
            mean.add({"": value}, self.weights[domain])
        return mean.result()[""]
