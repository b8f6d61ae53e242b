"""The server's side of local training: train messages with their references, and the mean of the updates."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedhess.alignment.means import WeightedMean, mean_rule
from fedhess.alignment.rehearsal import check_mean_update, check_relay
from fedhess.alignment.step import round_steps
from fedhess.alignment.strategy import ClientReply, ClientUpdate, Reference
from fedhess.federation import protocol
from fedhess.federation.server.clients import Federation, ModelPayload, Request
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.norm_bound import Norms, norm
from fedhess.federation.server.previous_references import PreviousStatistics
from fedhess.federation.tensors import encode_tensors, read_tensors
from fedhess.settings.run_config import RunConfig

# By client and domain that it holds.
Weights = Mapping[Client, Mapping[str, float]]


def check_reference(reference: object) -> None:
    """Raise ``TypeError`` where a strategy's server half returned anything but tensors, or tensors by domain."""
    expected = "expected a mapping of names to tensors, or to tensors by domain, got"
    if not isinstance(reference, Mapping):
        raise TypeError(f"{expected} {type(reference).__name__}")
    for name, value in reference.items():
        for part in value.values() if isinstance(value, Mapping) else [value]:
            if not isinstance(part, Tensor):
                raise TypeError(f"{expected} {type(part).__name__} for {name!r}")


@dataclass
class RoundOutcome:
    """What a round of training did."""

    participants: list[Client] = field(default_factory=list)  # that completed every phase
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # of training, by client
    seconds: float = 0.0  # wall time
    # What sources have already measured of the evaluated model, by client and domain.
    measured: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)


class LocalPhase:
    """Has the source clients of a round train: the server's :class:`fedhess.alignment.LocalTraining`.

    With ``previous`` the train messages also ask for the statistics of the next round's references.
    """

    def __init__(
        self,
        federation: Federation,
        model: GlobalModel,
        participants: list[Client],
        reference: Reference,
        server_round: int,
        previous: PreviousStatistics | None = None,
        *,
        asked: int,
    ) -> None:
        self.model = model
        self.participants = participants
        self.config = federation.config
        self.server_round = server_round
        self.outcome = RoundOutcome()
        self._federation, self._asked = federation, asked
        self._reference_parts = _reference_parts(reference)
        self._previous = previous

    @property
    def domains(self) -> list[str]:
        """The domains of which a participant has training examples, in domain order."""
        held = {domain for client in self.participants for domain in client.identity.trains_on}
        return [domain for domain in self.config.sources if domain in held]

    @property
    def shares(self) -> dict[str, float]:
        """Weight of each source client of the run; see :meth:`fedhess.alignment.LocalTraining.shares`."""
        weights = holding_weights(self._federation.source_clients, self.config)
        own = {client.label: sum(held.values()) for client, held in weights.items()}
        return {label: weight / sum(own.values()) for label, weight in own.items()}

    def mean_update(
        self,
        domain_weights: Mapping[str, float] | None = None,
        *,
        given: Callable[[str], Mapping[str, Tensor]] | None = None,
        each: Callable[[ClientReply], object] | None = None,
        held_out: bool = False,
    ) -> dict[str, Tensor]:
        """Train all clients at once from the global model; see :meth:`fedhess.alignment.LocalTraining.mean_update`.

        Replies are added up as they come, one in memory at a time; a robust mean holds them all.

        Raises:
            UsageError: See `check_mean_update`.
        """
        check_mean_update(self.config, weighs=domain_weights is not None, sees=each is not None, held_out=held_out)
        mean = mean_rule(self.config.update_mean, hostile=self.config.hostile_clients)()
        weights = holding_weights(self.participants, self.config, domain_weights)
        spare = self._federation.spare(self.participants, asked=self._asked)
        trained = self._train(weights, self.model.payload(), None, given=given, held_out=held_out, spare=spare)
        for client, result in trained:
            weight = sum(weights[client].values())
            if each is not None:
                own, examples = client.identity.trains_on, client.identity.train_examples
                steps = len(round_steps(self.config, train_size=examples, server_round=self.server_round))
                each(ClientReply(client.label, weight, own, steps, result.update, result.held_out))
            mean.add(result.update, weight)
        self.require_quorum()
        return mean.result()

    def train_domain(
        self, domain: str, position: Mapping[str, Tensor], *, momentum: Mapping[str, Tensor], name: str
    ) -> ClientUpdate | None:
        """Train the clients of one domain; see :meth:`fedhess.alignment.LocalTraining.train_domain`."""
        check_relay(self.config)
        start = ModelPayload(f"{self.model.payload().model_id}-{name}", encode_tensors(position))
        counts = {client: client.identity.trains_on.get(domain, 0) for client in self.participants}
        total = sum(counts.values())
        weights = {client: {domain: count / total} for client, count in counts.items() if count}
        update, buffers = WeightedMean(), WeightedMean()
        result = None
        for client, result in self._train(weights, start, momentum):
            update.add(result.update, weights[client][domain])
            if result.momentum:
                buffers.add(result.momentum, weights[client][domain])
        if result is None:
            return None
        return ClientUpdate(update.result(), buffers.result() if result.momentum else {})

    def require_quorum(self) -> None:
        """Check that enough clients have trained; a client of several domains must have trained on all it was asked."""
        failed = self._federation.ledger.failed("train", self.server_round)
        completed = [client for client in self.outcome.participants if client.label not in failed]
        self.outcome.participants = completed
        self._federation.require_quorum("train", self.server_round, completed, asked=self._asked)

    def _train(
        self,
        weights: Weights,
        payload: ModelPayload,
        momentum: Mapping[str, Tensor] | None,
        *,
        given: Callable[[str], Mapping[str, Tensor]] | None = None,
        held_out: bool = False,
        spare: float = math.inf,
    ) -> Iterator[tuple[Client, ClientUpdate]]:
        expected = {name: self.model.tensors[name] for name in self.model.update_names}
        carried = {} if momentum is None else {protocol.MOMENTUM: encode_tensors(momentum)}
        has_momentum = momentum is not None and self.config.client_optimizer == "SGD" and self.config.momentum > 0
        trained = {name: expected[name] for name in self.model.trained_names} if has_momentum else {}

        # Statistics are of the round's model: if clients start from another one, the next round asks for them.
        previous = self._previous if payload.model_id == self.model.payload().model_id else None
        requests = {} if previous is None else previous.requests()

        def parts(client: Client) -> dict[str, protocol.Part]:
            references = self._reference_parts(client)
            if given is not None:
                own = encode_tensors(given(client.label))
                references[protocol.REFERENCE] = ArrayRecord({**references[protocol.REFERENCE], **own})
            settings = _weights_setting(client, weights[client]) | ({protocol.HELD_OUT: True} if held_out else {})
            return {**references, **carried, protocol.CONFIG: ConfigRecord(settings), **requests}

        def records(client: Client) -> list[str]:
            answers = [] if previous is None else previous.records(client)
            measured = client.identity.keys(protocol.HELD_OUT) if held_out else []
            return [protocol.MODEL, protocol.METRICS, *([protocol.MOMENTUM] if trained else []), *measured, *answers]

        def read(client: Client, content: RecordDict) -> tuple[ClientUpdate, dict[str, float]]:
            update = read_tensors(content, protocol.MODEL, like=expected)
            buffers = read_tensors(content, protocol.MOMENTUM, like=trained) if trained else {}
            metrics = protocol.training_metrics_of(
                content, examples=client.identity.train_examples, private=self.config.is_private
            )
            if previous is not None:
                previous.read(client, content)
            measured = protocol.held_out_of(content, client.identity) if held_out else {}
            return ClientUpdate(update, buffers, measured), metrics

        deadline = self.config.deadline
        request = Request("train", protocol.TRAIN, self.server_round, payload, deadline, records, read, parts, spare)
        replies = self._federation.exchange(request, weights)
        screened = self._federation.screen("train", self.server_round, replies, _norms, asked=len(weights))
        for client, (result, metrics) in screened:
            if client.label not in self.outcome.metrics:  # else it has trained on another of its domains before
                self.outcome.participants.append(client)
            self.outcome.metrics[client.label] = metrics
            yield client, result


def _norms(client: Client, reply: tuple[ClientUpdate, dict[str, float]]) -> Norms:
    del client
    update, momentum = reply[0].update, reply[0].momentum
    return {"update": norm(update)} | ({"momentum": norm(momentum)} if momentum else {})


def _reference_parts(reference: Reference) -> Callable[[Client], dict[str, ArrayRecord]]:
    """Return a function that makes the references' records for a client; shared references are encoded once."""
    shared = encode_tensors({name: value.detach() for name, value in reference.items() if isinstance(value, Tensor)})
    by_domain = {name: value for name, value in reference.items() if not isinstance(value, Tensor)}

    def parts(client: Client) -> dict[str, ArrayRecord]:
        identity = client.identity
        own = {
            identity.key(protocol.REFERENCE, domain): encode_tensors(
                {name: values[domain].detach() for name, values in by_domain.items() if domain in values}
            )
            for domain in identity.trains_on
        }
        if not identity.several:
            return {protocol.REFERENCE: ArrayRecord({**shared, **own[protocol.REFERENCE]})}
        return {protocol.REFERENCE: shared, **own}

    return parts


def _weights_setting(client: Client, weights: Mapping[str, float]) -> dict[str, Any]:
    """Return the setting with the weight of each domain in a client's loss; none for a client of one domain."""
    if not client.identity.several:
        return {}
    if not any(weights.values()):  # its update will not count, but it has to make one
        weights = client.identity.trains_on
    return {protocol.TRAIN_DOMAINS: list(weights), protocol.TRAIN_WEIGHTS: [float(w) for w in weights.values()]}


def holding_weights(
    clients: Sequence[Client], config: RunConfig, by_domain: Mapping[str, float] | None = None
) -> dict[Client, dict[str, float]]:
    """Return the weight of each client's holding of each domain, by the run's ``weighting``.

    Domains weigh the same and a domain's clients share its weight by examples, or every example weighs the same. The
    weights of a client's domains sum to the client's weight in the mean, and its loss uses them too. So the mean of the
    clients' gradients is the gradient of the weighted mean over domains, whichever client holds what. A strategy's
    weights of the domains, ``by_domain``, replace those of the run.
    """
    held = {client: client.identity.trains_on for client in clients}
    if config.weighting == "examples" and by_domain is None:
        return {client: {domain: float(count) for domain, count in own.items()} for client, own in held.items()}
    totals = Counter[str]()
    for own in held.values():
        totals.update(own)
    share = {client: {domain: count / totals[domain] for domain, count in own.items()} for client, own in held.items()}
    if by_domain is None:
        return share
    return {client: {domain: by_domain[domain] * part for domain, part in own.items()} for client, own in share.items()}
