"""The server's request to the source clients: ``ask("gradient")`` returns that statistic of every domain."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedhess.alignment.means import DomainMeans, PerDomain, mean_rule
from fedhess.alignment.statistics import StatisticShapes
from fedhess.base.seeds import derive_seed
from fedhess.federation import protocol
from fedhess.federation.server.clients import Federation, ModelPayload, Request
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.norm_bound import Norms, norm
from fedhess.federation.tensors import read_tensors
from fedhess.settings.assignments import Scalar

Answer = dict[str, dict[str, Tensor]]  # a client's statistics, by domain and name


class Exchange:
    """Asks the source clients of a round for statistics, one exchange per call: a :class:`fedhess.alignment.Ask`.

    ``participants`` are the clients that answered every exchange so far; ``norms`` has the norms of each exchange.
    """

    def __init__(
        self,
        federation: Federation,
        shapes: StatisticShapes,
        model: ModelPayload,
        server_round: int,
        without: Client | None = None,
    ) -> None:
        self.domains = tuple(federation.config.sources)
        self.participants = [client for client in federation.participants(server_round) if client is not without]
        self.seed = derive_seed(federation.config.seed, "round", server_round)
        self.server_round = server_round
        self.asked = len(self.participants)
        self.norms: list[dict[Client, Norms]] = []
        self._federation = federation
        self._shapes = shapes
        self._model = model

    def __call__(self, name: str, **given: Tensor | Scalar) -> PerDomain:
        """Ask for one statistic: by domain, the mean over its clients, weighted by their examples of it."""
        return self.several(name, **given)[name]

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Ask for several statistics in one exchange; each function gets the arguments that it has parameters for."""
        return self._average(names, self._answers(self.participants, names, given))

    def held_out(self) -> dict[str, PerDomain]:
        """Ask for ``"loss"`` and ``"accuracy"`` of the model on the sources' evaluation examples, one exchange."""

        def read(client: Client, content: RecordDict) -> Answer:
            measured = protocol.held_out_of(content, client.identity)
            return {d: {n: torch.tensor(v, dtype=torch.float64) for n, v in own.items()} for d, own in measured.items()}

        parts = {protocol.CONFIG: ConfigRecord({protocol.HELD_OUT: True})}
        names = ("loss", "accuracy")
        return self._average(names, self._request(_phase(names), parts, protocol.HELD_OUT, read, self.participants))

    def _answers(
        self, clients: Sequence[Client], names: Sequence[str], given: Mapping[str, Tensor | Scalar]
    ) -> Iterator[tuple[Client, Answer]]:
        """Send one message to each client and yield the valid answers as they come, in domain order."""
        parts = protocol.encode_request(names, given)
        expected = self._shapes.of(names, given)

        def read(client: Client, content: RecordDict) -> Answer:
            return read_answer(client, content, expected)

        return self._request(_phase(names), parts, protocol.STATISTIC_VALUES, read, clients)

    def _request(
        self,
        phase: str,
        parts: Mapping[str, protocol.Part],
        record: str,
        read: Callable[[Client, RecordDict], Answer],
        clients: Sequence[Client],
    ) -> Iterator[tuple[Client, Answer]]:
        request = Request(
            phase,
            protocol.STATISTICS,
            self.server_round,
            self._model,
            self._federation.config.exchange_deadline,
            records=lambda client: client.identity.keys(record),
            read=read,
            parts=lambda _: parts,
            spare=self._federation.spare(self.participants, asked=self.asked),
        )
        return self._federation.exchange(request, clients)

    def _average(self, names: Sequence[str], answers: Iterable[tuple[Client, Answer]]) -> dict[str, PerDomain]:
        """Average by domain, and continue with the clients that answered, if they reach the quorum."""
        config = self._federation.config
        rule = mean_rule(config.reference_mean, hostile=config.hostile_clients)
        means = DomainMeans(self.domains, [client.identity.trains_on for client in self.participants], rule)
        answered: list[Client] = []
        asked, phase = len(self.participants), _phase(names)
        norms: dict[Client, Norms] = {}

        def measured(client: Client, answer: Answer) -> Norms:
            norms[client] = {
                name: max(norm({name: tensors[name]}) for tensors in answer.values()) for name in names
            }  # the largest over a client's domains
            return norms[client]

        screened = self._federation.screen(phase, self.server_round, answers, measured, asked=asked)
        for client, answer in screened:
            answered.append(client)
            for domain, tensors in answer.items():
                means.add(domain, tensors, client.identity.trains_on[domain])
        self.participants = answered
        self.norms.append({client: norms[client] for client in answered})
        self._federation.require_quorum(phase, self.server_round, answered, asked=self.asked)
        by_domain = means.result()
        by_examples = config.weighting == "examples"
        weights = means.examples if by_examples else dict.fromkeys(by_domain, 1)
        return {
            name: PerDomain({d: mean[name] for d, mean in by_domain.items()}, weights, means.examples, rule)
            for name in names
        }


def read_answer(client: Client, content: RecordDict, expected: Mapping[str, Tensor]) -> Answer:
    """Read a client's statistics from a reply; see :func:`read_tensors` for the errors."""
    return {
        domain: read_tensors(content, client.identity.key(protocol.STATISTIC_VALUES, domain), like=expected)
        for domain in client.identity.trains_on
    }


def _phase(names: Sequence[str]) -> str:
    return "exchange " + "+".join(names)
