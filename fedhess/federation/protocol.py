"""What crosses the wire: message types, record keys, identities, requests for statistics, and metrics.

Every Flower message type and every kebab-case key of a message is written in this file and nowhere else.

Messages from the server to a client, which replies with an error where it refuses or fails:

==================== ========= ===============================================================================
type                 who       content
==================== ========= ===============================================================================
evaluate.identify    every     none; reply: domain, role, client and example counts, or why the node refuses the run
query.statistics     source    model, names of statistics, given tensors and scalars; reply: one array per statistic;
                               or a request for the model's loss and accuracy on held-out examples; reply: both
train                source    model, reference; reply: the update (or the weights) and metrics; with
                               ``references="previous"`` also requests for statistics, and their answers; on request,
                               loss and accuracy of the trained model
evaluate             every     model; reply: loss, accuracy, counts of predictions, and (source clients only)
                               alignment statistics; a target client of a run that splits targets adds the loss,
                               accuracy and counts of its out split
==================== ========= ===============================================================================

A client that holds examples of several domains replies for each domain: the keys of its records of statistics,
evaluation and alignment contain the domain (:func:`of_domain`), and so do the keys of references that are specific to a
domain. Its train message gives the weight of each domain in its loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.tensors import decode_tensors, encode_tensors
from fedhess.settings.assignments import Scalar

Part = ArrayRecord | ConfigRecord | MetricRecord

IDENTIFY = "evaluate.identify"
STATISTICS = "query.statistics"
TRAIN = "train"
EVALUATE = "evaluate"

MODEL = "arrays"  # FedAvg's default keys, so that plain Flower strategies aggregate our replies
CONFIG = "config"
METRICS = "metrics"
GIVEN = "given"
GIVEN_SCALARS = "given-scalars"
REFERENCE = "reference"
MOMENTUM = "momentum"
STATISTIC_VALUES = "statistics"
CALL = "call-"
REFUSED = "refused"  # in the reply to IDENTIFY: why the node takes no part, next to its PLACE
PLACE = ("domain", "client", "partition-id")  # node config keys that identify the node among a run's clients
IDENTITY = "identity"  # name of the reply to IDENTIFY in the run's rows

ROUND = "server-round"
MODEL_ID = "model-id"
MODEL_MISSING = "model-missing"
MOST_EXAMPLES = 2**48  # that a client can claim: the sums over clients are computed in 64 bits
MODELS_HELD = 2  # newest models that a client keeps: the global model, and its average where one is evaluated
DATA_DIGEST = "data-digest"  # in a client's identity and in every message to it: its data may not change in a run
NONCE = "nonce"  # in every message and its reply: a node that was not sent the message does not know it
NAMES = "names"
REPLY_WEIGHTS = "reply-weights"
ALIGNMENT = "alignment"
COUNTS = "counts"  # of an evaluation: two arrays
CONFUSION = "confusion"  # (C, C) int32: examples by label and prediction
CALIBRATION = "calibration"  # (BINS, 3) float64: examples, correct predictions, sum of the examples' confidences
BINS = 15  # bins of the confidence, equally wide
HELD_OUT = "held-out"  # asks a source to evaluate the model or the one it trains; by domain in the reply
TRAIN_DOMAINS = "train-domains"
TRAIN_WEIGHTS = "train-weights"
NUM_EXAMPLES = "num-examples"
NOISE = "noise"  # source of a private source client's noise:
SEED, SYSTEM = "seed", "system"  # the run's seed, in a simulation, or the client's operating system (secure source)
TRAINING_METRICS = (NUM_EXAMPLES, "loss", "objective", "seconds")  # of a train reply, one number each
EVALUATION_ROUNDING = "evaluation-rounding"  # setting of a target's node: its counts are multiples of this
EVALUATION_EPSILON = "evaluation-epsilon"  # setting of a target's node: differential-privacy epsilon of each evaluation
OUT = "out-"  # prefix of the metrics and counts of a target's out split


# Error codes of our own replies; Flower's own stop well below 1000.
REFUSED_BY_TARGET = 1001
BAD_REQUEST = 1002
NOT_IN_RUN = 1004  # from a node that is not a client of the run; 1003 is the Ray engine's
STRATEGY_RAISED = 1005  # the strategy's own code raised on the client; the reason ends with the traceback

LONGEST = 500  # most characters of a node's text in a log, on the terminal or in a table
TRACEBACK = "Traceback (most recent call last):\n"  # where a traceback begins, as Python writes it


def of_domain(key: str, domain: str) -> str:
    """Return the key of the record ``key`` for one of a client's several domains."""
    return f"{key}/{domain}"


def client_label(domain: str, number: int) -> str:
    """Name a client in messages.

    >>> client_label("photo", 0), client_label("photo", 2)
    ('photo', 'photo[2]')
    """
    return printable(domain) if number == 0 else f"{printable(domain)}[{number}]"


@dataclass(frozen=True)
class Held:
    """How many examples of one domain a client holds."""

    domain: str
    train_examples: int
    evaluate_examples: int


@dataclass(frozen=True)
class Identity:
    """Which client a node is."""

    domain: str  # the main one if the client holds several
    role: str
    client: int  # index among the clients of the domain
    train_examples: int  # 0 for a target client
    evaluate_examples: int
    holds_out: bool  # whether the evaluation examples are held out of training
    several: tuple[Held, ...] = ()  # in domain order; empty if all examples are of the main domain
    classes: tuple[str, ...] = ()  # by label
    inputs: str = ""  # how an example becomes the model's input, frozen weights included
    data_digest: str = ""  # of the client's examples
    version: str = ""  # of fedhess and of torch
    noise: str = ""  # SEED or SYSTEM for a source client of a private run
    protection: tuple[int, float] | None = None  # of a target's counts: rounding multiple, and epsilon (0: no noise)

    @property
    def label(self) -> str:
        """The client's name in messages: the domain, and the client's number unless it is the first."""
        return client_label(self.domain, self.client)

    @property
    def holdings(self) -> tuple[Held, ...]:
        """The client's numbers of examples by domain."""
        return self.several or (Held(self.domain, self.train_examples, self.evaluate_examples),)

    @property
    def trains_on(self) -> dict[str, int]:
        """Number of training examples by domain; domains without any are left out."""
        return {held.domain: held.train_examples for held in self.holdings if held.train_examples}

    def key(self, record: str, domain: str) -> str:
        """Return the key of the client's record about one of its domains."""
        return of_domain(record, domain) if self.several else record

    def keys(self, record: str) -> list[str]:
        """Return the keys of the client's records about the domains that it trains on."""
        return [self.key(record, domain) for domain in self.trains_on]

    def to_record(self) -> ConfigRecord:
        """Write the identity as a Flower record."""
        record = ConfigRecord(
            {
                "domain": self.domain,
                "role": self.role,
                "client": self.client,
                "train-examples": self.train_examples,
                "evaluate-examples": self.evaluate_examples,
                "holds-out": self.holds_out,
                "classes": list(self.classes),
            }
        )
        texts = {"inputs": self.inputs, NOISE: self.noise, DATA_DIGEST: self.data_digest, "version": self.version}
        record.update({key: text for key, text in texts.items() if text})  # count_bytes raises on an empty text
        if self.protection is not None:
            record[EVALUATION_ROUNDING], record[EVALUATION_EPSILON] = self.protection
        if self.several:
            record["held-domains"] = [held.domain for held in self.several]
            record["held-train-examples"] = [held.train_examples for held in self.several]
            record["held-evaluate-examples"] = [held.evaluate_examples for held in self.several]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Identity":
        """Read what :meth:`to_record` wrote; ``ValueError`` if a field is missing, mistyped or contradicts another."""
        expected = "an identity with domain, role, classes and whole counts that add up, each domain once"
        unclear = f"expected {expected}, got {dict(record)}"
        try:
            domain, role = record["domain"], record["role"]
            counts = [record[key] for key in ("client", "train-examples", "evaluate-examples")]
            columns = [record.get(f"held-{key}", []) for key in ("domains", "train-examples", "evaluate-examples")]
            several = tuple(Held(*row) for row in zip(*columns, strict=True))
            classes, protection = tuple(record.get("classes", ())), None
            if role == TARGET and EVALUATION_ROUNDING in record:
                protection = record[EVALUATION_ROUNDING], record[EVALUATION_EPSILON]
            rounding, epsilon = protection or (1, 0.0)
            whole, texts = [*counts, *columns[1], *columns[2], rounding], [domain, *columns[0], *classes]
            typed = all(type(count) is int for count in whole) and all(isinstance(text, str) for text in texts)
            finite = isinstance(epsilon, float) and math.isfinite(epsilon)
            negative, adds_up = min([*whole, epsilon]) < 0, max(whole) <= MOST_EXAMPLES
        except (KeyError, TypeError, ValueError):
            raise ValueError(unclear) from None
        if negative or (role == SOURCE and counts[1] == 0):
            raise ValueError(f"expected a source client with examples, no negative count, got {dict(record)}")
        adds_up &= not several or (role == SOURCE and [sum(column) for column in columns[1:]] == counts[1:])
        once = len({held.domain for held in several}) == len(several)
        if not (typed and finite and role in (SOURCE, TARGET) and adds_up and once):
            raise ValueError(unclear)
        client, train, evaluate = counts
        inputs, digest, versions, noise = (
            str(record.get(key, "")) for key in ("inputs", DATA_DIGEST, "version", NOISE)
        )
        holds_out = bool(record.get("holds-out", False))
        counted = (domain, role, client, train, evaluate, holds_out, several)
        return cls(*counted, classes, inputs, digest, versions, noise, protection)


def encode_request(names: Sequence[str], given: Mapping[str, Tensor | Scalar]) -> dict[str, ArrayRecord | ConfigRecord]:
    """Write a request to a client: names of statistics, and the tensors and scalars that their functions take."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    return {
        CONFIG: ConfigRecord({NAMES: list(names)}),
        GIVEN: encode_tensors(tensors),
        GIVEN_SCALARS: ConfigRecord(dict(scalars)),
    }


def decode_request(content: RecordDict) -> tuple[list[str], dict[str, Tensor | Scalar]]:
    """Read what :func:`encode_request` wrote: names of statistics, and the arguments of their functions."""
    names = content.config_records.get(CONFIG, ConfigRecord()).get(NAMES)
    tensors = decode_tensors(content.array_records.get(GIVEN, ArrayRecord()))
    scalars = content.config_records.get(GIVEN_SCALARS, ConfigRecord())
    given = {str(name): value for name, value in scalars.items() if isinstance(value, str | int | float)}
    return [str(name) for name in names] if isinstance(names, list) else [], given | tensors


def numbered(records: Mapping[str, Part], call: int) -> dict[str, Part]:
    """Rename the records of a request, or of its answer, so that several fit into one message: ``"call-0/given"``."""
    return {f"{CALL}{call}/{name}": record for name, record in records.items()}


def record_name(key: str) -> str:
    """Return a record's name without the number of its call and without its domain.

    >>> record_name("call-0/statistics/photo")
    'statistics'
    """
    first, _, rest = key.partition("/")
    return rest.partition("/")[0] if first.startswith(CALL) else first


def numbered_parts(content: RecordDict) -> list[RecordDict]:
    """Extract the requests or answers that :func:`numbered` put into a message, in their order."""
    found: dict[int, RecordDict] = {}
    for key, record in content.items():
        number, _, name = key.removeprefix(CALL).partition("/")
        if key.startswith(CALL) and number.isdecimal():
            found.setdefault(int(number), RecordDict())[name] = record
    return [found[number] for number in sorted(found)]


def evaluation_metrics(examples: int, loss: float, accuracy: float, *, of: str = "") -> dict[str, int | float]:
    """Return the metrics of a split as an evaluate reply names them; ``of`` is :data:`OUT` for an out split."""
    return {f"{of}{NUM_EXAMPLES}": examples, f"{of}loss": loss, f"{of}accuracy": accuracy}


def metrics_of(content: RecordDict, names: Sequence[str], key: str = METRICS) -> dict[str, float]:
    """Read the metrics of a reply; ``ValueError`` unless they are exactly those named, one number each."""
    record = content.get(key)
    if not isinstance(record, MetricRecord):
        raise ValueError(f"expected a MetricRecord {key!r} in the reply, got {sorted(content)}")
    if record.keys() != set(names) or any(isinstance(value, list) for value in record.values()):
        raise ValueError(f"expected the metrics {', '.join(names)}, a number each, got {sorted(record)}")
    return {name: float(record[name]) for name in names}  # type: ignore[arg-type]


def releases_in(content: RecordDict, message_type: str) -> int:
    """Count the statistics and updates that a message requests from a private source client."""
    requests = [content] if message_type == STATISTICS else numbered_parts(content) if message_type == TRAIN else []
    return (message_type == TRAIN) + sum(len(decode_request(request)[0]) for request in requests)


def held_out_of(content: RecordDict, identity: Identity) -> dict[str, dict[str, float]]:
    """Read loss and accuracy of a model by domain, from the records of an evaluation or of a train reply."""
    found = {}
    for domain in identity.trains_on:
        metrics = metrics_of(content, (NUM_EXAMPLES, "loss", "accuracy"), identity.key(HELD_OUT, domain))
        if not (0 <= metrics["accuracy"] <= 1 and 0 <= metrics["loss"] < math.inf):
            raise ValueError(f"expected a loss of at least 0 and an accuracy in [0, 1] in {HELD_OUT}, got {metrics}")
        found[domain] = {name: metrics[name] for name in ("loss", "accuracy")}
    return found


def training_metrics_of(content: RecordDict, *, examples: int, private: bool = False) -> dict[str, float]:
    """Read the metrics of a train reply, which Flower's strategies average: the same numbers from every client."""
    metrics = metrics_of(content, (NUM_EXAMPLES, "seconds") if private else TRAINING_METRICS)
    if metrics[NUM_EXAMPLES] != examples:
        raise ValueError(f"expected {NUM_EXAMPLES} = {examples} as at the start, got {metrics}")
    return metrics


def printable(text: str) -> str:
    r"""Put a node's text on one line, escape unprintable characters, and cut it to :data:`LONGEST` characters.

    >>> printable("no data\nround 9: accuracy 1.0\x1b[2K")
    'no data round 9: accuracy 1.0\\x1b[2K'
    """
    line = " ".join(text[: 10 * LONGEST].split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
