"""``references="previous"``: statistics come with the train replies and are used a round later, for slow links.

In round t the clients are pulled towards references made from the statistics of round t - 1: of the model that round
began from, on the batches of its first local step. So a round takes one exchange of messages, the train messages, where
the exact form of HGP takes three. What is not held is asked for as ever: all of it in the first round, which is that of
the exact form, and later what a client has not sent (it was away, or it failed).

Approximation. A reference is one round old, and so is every tensor that went into a statistic: with HGP in the form of
the released code, H_e[g] is the product with the mean gradient of the round before that. The more a round moves the
model, the worse. Random numbers that domains share are drawn once a run, since statistics of two rounds are compared:
Hutchinson's probes are the same in every round. Measured by ``python -m fedhess.simulations.timing --only references``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import RecordDict
from torch import Tensor

from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import StatisticShapes
from fedhess.base.seeds import derive_seed
from fedhess.federation import protocol
from fedhess.federation.server.clients import Federation, ModelPayload
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.exchange import Answer, Exchange, read_answer
from fedhess.federation.statistic_requests import encode_request, numbered, numbered_parts
from fedhess.settings.run_config import RunConfig, Scalar

_Stored = tuple[list[str], list[tuple[str, list[str]]]]  # a call in a checkpoint: names, clients with their domains


@dataclass
class _Call:
    """One call of ``ask`` in a round.

    Attributes:
        names: The statistics it asks for.
        answers: By client, as far as they are here.
        given: What their functions take, where the train messages repeat the request; else None.
        expected: A tensor like each answer.
    """

    names: tuple[str, ...]
    answers: dict[str, Answer] = field(default_factory=dict)
    given: Mapping[str, Tensor | Scalar] | None = None
    expected: Mapping[str, Tensor] = field(default_factory=dict)


class PreviousStatistics:
    """What the server holds of the round before, by call of ``ask`` and by client."""

    def __init__(self) -> None:
        self._held: list[_Call] = []
        self._coming: list[_Call] = []

    def exchange(
        self,
        federation: Federation,
        shapes: StatisticShapes,
        model: ModelPayload,
        config: RunConfig,
        server_round: int,
    ) -> "PreviousExchange":
        """Begin a round: return its ``ask``, which answers from what is held."""
        self._held, self._coming = self._coming, []
        return PreviousExchange(self, federation, shapes, model, config, server_round)

    def held(self, call: int, names: tuple[str, ...]) -> dict[str, Answer]:
        """Return the answers to a call of this number and these names in the round before, by client."""
        known = call < len(self._held) and self._held[call].names == names
        return self._held[call].answers if known else {}

    def expect(self, call: _Call) -> int:
        """Note a call of this round; return how many there are now."""
        self._coming.append(call)
        return len(self._coming)

    def requests(self) -> dict[str, protocol.Part]:
        """Return the records by which a train message asks for the statistics of the next round's references."""
        records: dict[str, protocol.Part] = {}
        for number, call in enumerate(self._repeated()):
            records |= numbered(encode_request(call.names, call.given or {}), number)
        return records

    def read(self, client: Client, content: RecordDict) -> None:
        """Take the answers out of a train reply.

        Raises:
            ValueError: One is missing, or not finite, or of another shape.
        """
        repeated = self._repeated()
        parts = numbered_parts(content)
        if len(parts) != len(repeated):
            raise ValueError(f"expected {len(repeated)} answers about statistics in the reply, got {len(parts)}")
        answers = [
            read_answer(client, part, call.expected) for part, call in zip(parts, repeated, strict=True)
        ]  # all of them before any is kept
        for answer, call in zip(answers, repeated, strict=True):
            call.answers[client.label] = {
                domain: {name: value.clone() for name, value in values.items()} for domain, values in answer.items()
            }

    def state(self) -> tuple[dict[str, Tensor], list[_Stored]]:
        """Return what the next round will use, for a checkpoint: tensors, and a list of calls."""
        tensors: dict[str, Tensor] = {}
        calls: list[_Stored] = []
        for number, call in enumerate(self._coming):
            clients: list[tuple[str, list[str]]] = []
            for index, (client, answer) in enumerate(call.answers.items()):
                clients.append((client, list(answer)))
                for position, values in enumerate(answer.values()):
                    tensors |= {f"{number}/{index}/{position}/{name}": value for name, value in values.items()}
            calls.append((list(call.names), clients))
        return tensors, calls

    def restore(self, tensors: Mapping[str, Tensor], calls: Sequence[_Stored]) -> None:
        """Take back what :meth:`state` returned."""
        self._coming = []
        for number, (names, clients) in enumerate(calls):
            answers = {
                client: {
                    domain: {name: tensors[f"{number}/{index}/{position}/{name}"] for name in names}
                    for position, domain in enumerate(domains)
                }
                for index, (client, domains) in enumerate(clients)
            }
            self._coming.append(_Call(tuple(names), answers))

    def _repeated(self) -> list[_Call]:
        return [call for call in self._coming if call.given is not None]


class PreviousExchange(Exchange):
    """``ask`` that answers with the statistics of the round before, and asks only the clients that it has none of.

    Args:
        memory: What is held, and where the calls of this round are noted.
        federation: The clients.
        shapes: The strategy's statistics and what shape each has.
        model: The round's model.
        config: The settings of the run.
        server_round: Number of the round.
    """

    def __init__(
        self,
        memory: PreviousStatistics,
        federation: Federation,
        shapes: StatisticShapes,
        model: ModelPayload,
        config: RunConfig,
        server_round: int,
    ) -> None:
        super().__init__(federation, shapes, model, config, server_round)
        self.seed = derive_seed(config.seed, "round", 0)  # one for the run: what is compared is of two rounds
        self._memory = memory
        self._calls = 0

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Return several statistics of the round before; what is missing is asked for in one exchange."""
        held = self._memory.held(self._calls, names)
        missing = [client for client in self.participants if client.label not in held]
        fresh = dict(self._ask(missing, names, given)) if missing else {}
        found = {client.label: held.get(client.label) or fresh.get(client) for client in self.participants}
        answers = {client: values for client in self.participants if (values := found[client.label]) is not None}
        call = _Call(names, expected=self._shapes.of(names, given))
        if len(missing) == len(found):
            call.answers = {client.label: values for client, values in fresh.items()}  # as the train replies would be
        else:
            call.given = given
        self._calls = self._memory.expect(call)
        return self._settled(names, answers.items())
