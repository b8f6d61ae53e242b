"""The server's question to the source clients: ``ask("gradient")`` returns that statistic of every domain."""

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import RecordDict
from torch import Tensor

from fedhess import protocol
from fedhess.aggregation import WeightedMean
from fedhess.config import RunConfig, Scalar
from fedhess.federation import Federation, ModelPayload
from fedhess.roster import Client
from fedhess.sampling import derive_seed
from fedhess.shapes import StatisticShapes
from fedhess.validation import read_tensors

Answer = dict[str, Tensor]  # a client's statistics, by name


class PerDomain(Mapping[str, Tensor]):
    """One statistic of every source domain, in domain order.

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
        self.participants = federation.source_clients
        self.seed = derive_seed(config.seed, "round", server_round)
        self.server_round = server_round
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
            The statistic by domain, clients of one domain averaged by their examples.

        Raises:
            FederationError: Fewer source clients than the quorum answered.
        """
        return self.several(name, **given)[name]

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Ask for several statistics in one exchange; each function is given what it has a parameter for."""
        return self._settled(names, self._ask(self.participants, names, given))

    def _ask(
        self, clients: Sequence[Client], names: Sequence[str], given: Mapping[str, Tensor | Scalar]
    ) -> dict[Client, Answer]:
        """Send one message to each client; those whose answer is good are in the result, in domain order."""
        parts = protocol.encode_request(names, given)
        expected = self._shapes.of(names, given)

        def read(client: Client, content: RecordDict) -> Answer:
            return read_answer(client, content, expected)

        replies = self._federation.exchange(
            _phase(names),
            clients,
            message_type=protocol.STATISTICS,
            server_round=self.server_round,
            model=self._model,
            parts=lambda _: parts,
            read=read,
            deadline=self._config.exchange_deadline,
        )
        return dict(replies)

    def _settled(self, names: Sequence[str], answers: Mapping[Client, Answer]) -> dict[str, PerDomain]:
        """Go on with the clients that answered, if they are enough, and average by domain."""
        self.participants = list(answers)
        self._federation.require_quorum(_phase(names), self.server_round, self.participants)
        return {name: self._per_domain({client: values[name] for client, values in answers.items()}) for name in names}

    def _per_domain(self, values: Mapping[Client, Tensor]) -> PerDomain:
        examples: dict[str, int] = {}
        for client in values:
            domain = client.identity.domain
            examples[domain] = examples.get(domain, 0) + client.identity.train_examples
        means = {domain: WeightedMean() for domain in examples}
        for client, value in values.items():
            domain = client.identity.domain
            means[domain].add({"": value}, client.identity.train_examples / examples[domain])
        weights = examples if self._config.weighting == "examples" else dict.fromkeys(examples, 1)
        return PerDomain({domain: mean.result()[""] for domain, mean in means.items()}, weights)


def read_answer(client: Client, content: RecordDict, expected: Mapping[str, Tensor]) -> Answer:
    """Take a client's statistics out of a reply.

    Raises:
        ValueError: One is missing, not finite, or of another shape or dtype than expected.
    """
    del client
    return read_tensors(content, protocol.STATISTIC_VALUES, like=expected)


def _phase(names: Sequence[str]) -> str:
    return "exchange " + "+".join(names)
