"""The server's side of local training: train messages with their references, and the mean of the updates."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedhess import protocol
from fedhess.aggregation import GlobalModel, WeightedMean
from fedhess.config import RunConfig
from fedhess.federation import Federation, ModelPayload
from fedhess.previous import PreviousStatistics
from fedhess.roster import Client
from fedhess.validation import read_tensors

# What a strategy's server half hands to the clients: tensors for all, or values by domain, to each its own.
Reference = Mapping[str, Tensor | Mapping[str, Tensor]]


@dataclass
class RoundOutcome:
    """What a round of training did.

    Attributes:
        participants: Source clients that completed every phase.
        metrics: Each participant's training metrics: examples, loss and objective at the first step, seconds.
        seconds: Wall time of the round's training.
    """

    participants: list[Client]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class ClientUpdate:
    """What one client's local steps made.

    Attributes:
        update: ``before - after`` by name.
        momentum: The momentum buffers its optimizer ended with, where they were asked for.
    """

    update: dict[str, Tensor]
    momentum: dict[str, Tensor]


class LocalPhase:
    """Have the source clients of a round train.

    Args:
        federation: The clients.
        model: The global model, which the round began from.
        participants: Who takes part, in domain order.
        reference: References of the round.
        config: The settings of the run.
        server_round: Number of the round.
        previous: Asks in the train messages for the statistics of the next round's references, if anything does.

    Attributes:
        outcome: Who completed the phase, and their metrics.
    """

    def __init__(
        self,
        federation: Federation,
        model: GlobalModel,
        participants: list[Client],
        reference: Reference,
        config: RunConfig,
        server_round: int,
        previous: PreviousStatistics | None = None,
    ) -> None:
        self.model = model
        self.participants = participants
        self.config = config
        self.server_round = server_round
        self.outcome = RoundOutcome(participants=[])
        self._federation = federation
        self._references = _ReferenceParts(reference)
        self._previous = previous

    def mean_update(self, domain_weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Train all clients at once from the global model and average their updates in domain order.

        Replies are added up as they come, one in memory at a time.

        Args:
            domain_weights: Weight of each domain, or None for the run's weighting.

        Raises:
            FederationError: Fewer source clients than the quorum trained.
        """
        mean = WeightedMean()
        weights = client_weights(self.participants, self.config, domain_weights)
        for client, result in self._train(self.participants, self.model.payload(), None):
            mean.add(result.update, weights[client])
        self._federation.require_quorum("train", self.server_round, self.outcome.participants)
        return mean.result()

    def train_one(
        self, client: Client, position: Mapping[str, Tensor], *, momentum: Mapping[str, Tensor], name: str
    ) -> ClientUpdate | None:
        """Train one client from a model of its own.

        Args:
            client: The client.
            position: Every tensor of the model it begins from.
            momentum: Momentum buffers that its optimizer begins with, by parameter; empty for a fresh one.
            name: Tells this model from the other models of the round.

        Returns:
            Its update and the momentum it ended with, or None if it failed.
        """
        payload = self.model.payload()
        started_from = ModelPayload(f"{payload.model_id}-{name}", protocol.encode_tensors(position))
        for _, result in self._train([client], started_from, momentum):
            return result
        return None

    def _train(
        self, clients: Iterable[Client], payload: ModelPayload, momentum: Mapping[str, Tensor] | None
    ) -> Iterator[tuple[Client, ClientUpdate]]:
        expected = {name: self.model.tensors[name] for name in self.model.update_names}
        carried = {} if momentum is None else {protocol.MOMENTUM: protocol.encode_tensors(momentum)}

        requests = {} if self._previous is None else self._previous.requests()

        def parts(client: Client) -> dict[str, protocol.Part]:
            return {**self._references(client), **carried, **requests}

        def read(client: Client, content: RecordDict) -> tuple[ClientUpdate, dict[str, float]]:
            update = read_tensors(content, protocol.MODEL, like=expected)
            buffers: dict[str, Tensor] = {}
            if protocol.MOMENTUM in content.array_records:
                held = {name: expected[name] for name in content.array_records[protocol.MOMENTUM] if name in expected}
                buffers = read_tensors(content, protocol.MOMENTUM, like=held)
            metrics = protocol.metrics_of(content)
            if self._previous is not None:
                self._previous.read(client, content)
            return ClientUpdate(update, buffers), metrics

        replies = self._federation.exchange(
            "train",
            clients,
            message_type=protocol.TRAIN,
            server_round=self.server_round,
            model=payload,
            parts=parts,
            read=read,
            deadline=self.config.deadline,
        )
        for client, (result, metrics) in replies:
            self.outcome.participants.append(client)
            self.outcome.metrics[client.label] = metrics
            yield client, result


class _ReferenceParts:
    """The references of a round as the records of each client's message; what all share is encoded once.

    Args:
        reference: What the strategy's server half returned.
    """

    def __init__(self, reference: Reference) -> None:
        shared = {name: value.detach() for name, value in reference.items() if isinstance(value, Tensor)}
        self._shared = protocol.encode_tensors(shared)
        self._by_domain = {name: value for name, value in reference.items() if not isinstance(value, Tensor)}

    def __call__(self, client: Client) -> dict[str, ArrayRecord]:
        """Return the records of one client."""
        own = {name: values[client.identity.domain].detach() for name, values in self._by_domain.items()}
        return {protocol.REFERENCE: ArrayRecord({**self._shared, **protocol.encode_tensors(own)})}


def client_weights(
    clients: list[Client], config: RunConfig, by_domain: Mapping[str, float] | None = None
) -> dict[Client, float]:
    """Weigh clients by domain, each domain's weight shared by its clients by examples, or by their training examples.

    Args:
        clients: Who takes part.
        config: Says which of the two, unless the strategy gives weights.
        by_domain: Weights of the domains from the strategy.
    """
    if config.weighting == "examples" and by_domain is None:
        return {client: float(client.identity.train_examples) for client in clients}
    totals: dict[str, int] = {}
    for client in clients:
        totals[client.identity.domain] = totals.get(client.identity.domain, 0) + client.identity.train_examples
    share = {client: client.identity.train_examples / totals[client.identity.domain] for client in clients}
    return share if by_domain is None else {c: by_domain[c.identity.domain] * part for c, part in share.items()}
