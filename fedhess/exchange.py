"""The server's question to the source clients: ``ask("gradient")`` returns that statistic of every domain."""

from collections.abc import Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedhess import protocol
from fedhess.aggregation import DomainMeans, WeightedMean
from fedhess.config import RunConfig, Scalar
from fedhess.federation import Federation, ModelPayload
from fedhess.roster import Client
from fedhess.sampling import derive_seed
from fedhess.shapes import StatisticShapes
from fedhess.validation import read_tensors


class PerDomain(Mapping[str, Tensor]):
    """One statistic of every source domain that has a client in the round, in domain order.

    Args:
        values: The statistic by domain.
        weights: Weight of each domain in :meth:`mean`; equal unless the run weighs by examples.
    """

    def __init__(self, values: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self._values = dict(values)
        self._weights = dict(weights)

    def __getitem__(self, domain: str) -> Tensor:
        return self._values[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def with_values(self, values: Mapping[str, Tensor]) -> "PerDomain":
        """Return other values of the same domains, weighed alike."""
        return PerDomain({domain: values[domain] for domain in self._values}, self._weights)

    def mean(self) -> Tensor:
        """Average over the domains, summed in domain order."""
        mean = WeightedMean()
        for domain, value in self._values.items():
            mean.add({"": value}, self._weights[domain])
        return mean.result()[""]


class Exchange:
    """Ask the source clients of a round for statistics of their head, each call one exchange of messages.

    Args:
        federation: The clients.
        shapes: The strategy's statistics and what shape each has.
        model: The round's model.
        config: The settings of the run.
        server_round: Number of the round.

    Attributes:
        domains: Names of the run's source domains. In a round without a client of a domain, no answer has it.
        participants: The source clients still in the round: those that answered every exchange so far.
        seed: Seed that the round's domains share, for common random numbers.
        server_round: Number of the round.
    """

    def __init__(
        self,
        federation: Federation,
        shapes: StatisticShapes,
        model: ModelPayload,
        config: RunConfig,
        server_round: int,
    ) -> None:
        self.domains = tuple(config.sources)
        self.participants = federation.participants(server_round)
        self.seed = derive_seed(config.seed, "round", server_round)
        self.server_round = server_round
        self._asked = len(self.participants)
        self._federation = federation
        self._shapes = shapes
        self._model = model
        self._config = config

    def __call__(self, name: str, **given: Tensor | Scalar) -> PerDomain:
        """Ask for one statistic.

        Args:
            name: One of the strategy's statistics.
            **given: Tensors and scalars that its function takes besides the batch.

        Returns:
            The statistic by domain: the mean over the domain's clients, weighted by their examples of it. A client that
            holds several domains answers for each, and counts in each.

        Raises:
            FederationError: Fewer source clients than the quorum answered.
        """
        return self.several(name, **given)[name]

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Ask for several statistics in one exchange; each function is given what it has a parameter for."""
        config = self._config
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        scalars = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
        parts: dict[str, ArrayRecord | ConfigRecord] = {
            protocol.CONFIG: ConfigRecord({protocol.NAMES: list(names)}),
            protocol.GIVEN: protocol.encode_tensors(tensors),
            protocol.GIVEN_SCALARS: ConfigRecord(dict(scalars)),
        }
        expected = self._shapes.of(names, given)

        def read(client: Client, content: RecordDict) -> dict[str, dict[str, Tensor]]:
            return {
                domain: read_tensors(content, client.identity.key(protocol.STATISTIC_VALUES, domain), like=expected)
                for domain in client.identity.trains_on
            }

        phase = "exchange " + "+".join(names)
        replies = self._federation.exchange(
            phase,
            self.participants,
            message_type=protocol.STATISTICS,
            server_round=self.server_round,
            model=self._model,
            parts=lambda _: parts,
            read=read,
            deadline=config.exchange_deadline,
        )
        means = DomainMeans(self.domains, [client.identity.trains_on for client in self.participants])
        answered: list[Client] = []
        for client, values in replies:
            answered.append(client)
            for domain, tensors in values.items():
                means.add(domain, tensors, client.identity.trains_on[domain])
        self.participants = answered
        self._federation.require_quorum(phase, self.server_round, answered, asked=self._asked)
        by_domain, examples = means.result(), means.examples
        weights = examples if config.weighting == "examples" else dict.fromkeys(by_domain, 1)
        return {name: PerDomain({d: mean[name] for d, mean in by_domain.items()}, weights) for name in names}
