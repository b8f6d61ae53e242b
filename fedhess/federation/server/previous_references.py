"""``references="previous"``: statistics come with the train replies and are used a round later, for slow links.

In round t the clients are pulled towards references made from the statistics of round t - 1: those of the model that
round t - 1 began from, on the batches of its first local step. A round then takes one exchange of messages, the train
messages, while the exact form of HGP takes three. Missing statistics are asked for: all of them in the first round,
later those that a client has not sent (because it was absent or failed).

Approximation. A reference is one round old, and so is every tensor that was given to a statistic: with HGP in the form
of the released code, H_e[g] is the product with the mean gradient of the round before that. The approximation is worse
the more a round moves the model. Random numbers that domains share, such as Hutchinson's probes, are drawn once a run,
since statistics of two rounds are compared. Measured by ``python -m fedhess.simulations.timing --only references``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict
from torch import Tensor

from fedhess.alignment.means import PerDomain
from fedhess.base.seeds import derive_seed
from fedhess.federation import protocol
from fedhess.federation.server.discovery import Client
from fedhess.federation.server.exchange import Answer, Exchange, read_answer
from fedhess.settings.assignments import Scalar

_Stored = tuple[list[str], list[tuple[str, list[str]]]]  # a call in a checkpoint: names, clients with their domains


@dataclass
class _Call:
    """One call of ``ask`` in a round; ``given`` is None where the train messages do not repeat it."""

    names: tuple[str, ...]
    answers: dict[str, Answer] = field(default_factory=dict)  # by client, those received so far
    given: Mapping[str, Tensor | Scalar] | None = None
    expected: Mapping[str, Tensor] = field(default_factory=dict)


class PreviousStatistics:
    """The statistics of the round before that the server holds, by call of ``ask`` and by client."""

    def __init__(self) -> None:
        self.last: list[_Call] = []
        self.current: list[_Call] = []

    def exchange(self, *of_round: Any) -> "PreviousExchange":
        """Begin a round: return its ``ask``, which answers with held statistics; arguments are those of `Exchange`."""
        self.last, self.current = self.current, []
        return PreviousExchange(self, *of_round)

    def requests(self) -> dict[str, protocol.Part]:
        """Return the records with which a train message asks for the statistics of the next round's references."""
        records: dict[str, protocol.Part] = {}
        for number, call in enumerate(self._repeated()):
            records |= protocol.numbered(protocol.encode_request(call.names, call.given or {}), number)
        return records

    def records(self, client: Client) -> list[str]:
        """Name the records of the answers in a train reply."""
        keys = client.identity.keys(protocol.STATISTIC_VALUES)
        return [f"{protocol.CALL}{number}/{key}" for number in range(len(self._repeated())) for key in keys]

    def read(self, client: Client, content: RecordDict) -> None:
        """Keep the answers in a train reply."""
        repeated, parts = self._repeated(), protocol.numbered_parts(content)
        if len(parts) != len(repeated):
            raise ValueError(f"expected {len(repeated)} answers about statistics in the reply, got {len(parts)}")
        answers = [read_answer(client, part, call.expected) for part, call in zip(parts, repeated, strict=True)]
        for answer, call in zip(answers, repeated, strict=True):  # all of them or none
            call.answers[client.label] = answer

    def state(self) -> tuple[dict[str, Tensor], list[_Stored]]:
        """Return what the next round will use, for a checkpoint: tensors, and a list of calls."""
        tensors: dict[str, Tensor] = {}
        calls: list[_Stored] = []
        for number, call in enumerate(self.current):
            for index, answer in enumerate(call.answers.values()):
                for position, values in enumerate(answer.values()):
                    tensors |= {f"{number}/{index}/{position}/{name}": value for name, value in values.items()}
            calls.append((list(call.names), [(client, list(answer)) for client, answer in call.answers.items()]))
        return tensors, calls

    def restore(self, tensors: Mapping[str, Tensor], calls: Sequence[_Stored]) -> None:
        """Restore what :meth:`state` returned."""
        self.current = []
        for number, (names, clients) in enumerate(calls):
            answers = {
                client: {
                    domain: {name: tensors[f"{number}/{index}/{position}/{name}"] for name in names}
                    for position, domain in enumerate(domains)
                }
                for index, (client, domains) in enumerate(clients)
            }
            self.current.append(_Call(tuple(names), answers))

    def _repeated(self) -> list[_Call]:
        return [call for call in self.current if call.given is not None]


class PreviousExchange(Exchange):
    """An ``ask`` that returns the statistics of the round before; it asks only clients whose statistics are missing."""

    def __init__(self, memory: PreviousStatistics, *of_round: Any) -> None:
        super().__init__(*of_round)
        self.seed = derive_seed(self._federation.config.seed, "round", 0)  # one per run: two rounds are compared
        self._memory = memory

    def several(self, *names: str, **given: Tensor | Scalar) -> dict[str, PerDomain]:
        """Return several statistics of the round before; what is missing is asked for in one exchange."""
        number, last = len(self._memory.current), self._memory.last
        held = last[number].answers if number < len(last) and last[number].names == names else {}
        missing = [client for client in self.participants if client.label not in held]
        asked = self._answers(missing, names, given) if missing else ()
        fresh = {client.label: answer for client, answer in asked}
        if len(missing) == len(self.participants):
            call = _Call(names, answers=fresh)  # train replies would have the same
        else:
            call = _Call(names, given=given, expected=self._shapes.of(names, given))
        self._memory.current.append(call)
        known = held | fresh
        answers = [(client, known[client.label]) for client in self.participants if client.label in known]
        return self._average(names, answers)
