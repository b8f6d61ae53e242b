"""What crosses the wire: message names, record keys, and tensors to Flower records and back.

Every Flower message type and every kebab-case key of a message or a run config is spelt in this file (or in
:mod:`fedhess.settings.run_config` for run-config keys) and nowhere else. Arrays travel in Flower's own serialisation
(``numpy.ndarray``: the .npy format), so a plain Flower strategy or client can read them.

Messages (server to client, all of them also answered by an error reply where the client refuses or fails):

==================== ========= ===============================================================================
type                 who       content
==================== ========= ===============================================================================
evaluate.identify    every     none; the reply names domain, role, client and example counts
query.statistics     source    model, names of statistics, given tensors and scalars; reply: one array a statistic
train                source    model, reference; reply: the update (or the weights) and metrics; with
                               ``references="previous"`` also requests for statistics, and their answers
evaluate             every     model; reply: loss, accuracy, and (source clients only) alignment statistics; a
                               target client of a run that splits targets adds loss and accuracy of its out split
==================== ========= ===============================================================================

A client that holds examples of several domains answers for each: its records of statistics, of evaluation and of
alignment have the domain in their key (:func:`of_domain`), and so have the references that are its domain's own. Its
train message says how much each domain weighs in its loss.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedhess.base.transfers import copy_together
from fedhess.domains.benchmark import SOURCE, TARGET

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

ROUND = "server-round"
MODEL_ID = "model-id"
MODEL_MISSING = "model-missing"
NAMES = "names"
REPLY_WEIGHTS = "reply-weights"
ALIGNMENT = "alignment"
TRAIN_DOMAINS = "train-domains"
TRAIN_WEIGHTS = "train-weights"
NUM_EXAMPLES = "num-examples"
TRAINING_METRICS = (NUM_EXAMPLES, "loss", "objective", "seconds")  # of a train reply, a number each
OUT = "out-"  # before the names of the metrics of a target's out split


# Error codes of our own replies; Flower's own stop well below 1000.
REFUSED_BY_TARGET = 1001
BAD_REQUEST = 1002
NOT_IN_RUN = 1004  # the answer of a node whose domain the run does not have; 1003 is the Ray engine's
STRATEGY_RAISED = 1005  # the strategy's own code did, on the client: the reason ends with its traceback

TRACEBACK = "Traceback (most recent call last):\n"  # where a traceback begins, as Python writes it


def of_domain(key: str, domain: str) -> str:
    """Name the record ``key`` of one of a client's several domains."""
    return f"{key}/{domain}"


@dataclass(frozen=True)
class Held:
    """How much a client holds of one domain.

    Attributes:
        domain: The domain.
        train_examples: Number of examples it trains on.
        evaluate_examples: Number of examples it evaluates on.
    """

    domain: str
    train_examples: int
    evaluate_examples: int


@dataclass(frozen=True)
class Identity:
    """Who a client is: its domain, its role, and which of the domain's clients it is.

    Attributes:
        domain: Name of the domain whose examples it holds; the main one if it holds several.
        role: ``"source"`` or ``"target"``.
        client: Index among the clients of the domain, 0 when the domain has one.
        train_examples: Number of examples it trains on (0 for a target client).
        evaluate_examples: Number of examples it evaluates on.
        holds_out: Whether these are held out of training.
        several: What it holds by domain, in domain order; empty where all of it is of its main domain.
    """

    domain: str
    role: str
    client: int
    train_examples: int
    evaluate_examples: int
    holds_out: bool
    several: tuple[Held, ...] = ()

    @property
    def label(self) -> str:
        """The client as messages name it: the domain, and the client's number unless it is the only one."""
        return self.domain if self.client == 0 else f"{self.domain}[{self.client}]"

    @property
    def holdings(self) -> tuple[Held, ...]:
        """What it holds by domain."""
        return self.several or (Held(self.domain, self.train_examples, self.evaluate_examples),)

    @property
    def trains_on(self) -> dict[str, int]:
        """Its training examples by domain, none of them without any."""
        return {held.domain: held.train_examples for held in self.holdings if held.train_examples}

    def key(self, record: str, domain: str) -> str:
        """Name its record about one of its domains."""
        return of_domain(record, domain) if self.several else record

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
            }
        )
        if self.several:
            record["held-domains"] = [held.domain for held in self.several]
            record["held-train-examples"] = [held.train_examples for held in self.several]
            record["held-evaluate-examples"] = [held.evaluate_examples for held in self.several]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "Identity":
        """Read what :meth:`to_record` wrote.

        Raises:
            ValueError: A field is absent or of the wrong type, the role is neither source nor target, or the counts by
                domain do not add up.
        """
        domain, role = record.get("domain"), record.get("role")
        counts = [record.get(key) for key in ("client", "train-examples", "evaluate-examples")]
        if not isinstance(domain, str) or role not in (SOURCE, TARGET) or not all(isinstance(n, int) for n in counts):
            raise ValueError(f"expected an identity with domain, role and counts, got {dict(record)}")
        client, train, evaluate = (n for n in counts if isinstance(n, int))
        if min(client, train, evaluate) < 0 or (role == SOURCE and train == 0):
            raise ValueError(f"expected a source client with examples, no negative count, got {dict(record)}")
        several = _held(record)
        sums = [sum(held.train_examples for held in several), sum(held.evaluate_examples for held in several)]
        if several and (role == TARGET or sums != [train, evaluate]):
            raise ValueError(f"expected counts by domain that add up to the client's, got {dict(record)}")
        return cls(domain, str(role), client, train, evaluate, bool(record.get("holds-out", False)), several)


def _held(record: Mapping[str, object]) -> tuple[Held, ...]:
    """Read what a client says that it holds by domain."""
    columns = [record.get(f"held-{key}", []) for key in ("domains", "train-examples", "evaluate-examples")]
    lists = [column for column in columns if isinstance(column, list)]
    if len({len(column) for column in lists}) != 1 or len(lists) != 3 or len(set(lists[0])) != len(lists[0]):
        raise ValueError(f"expected each domain once with its counts, got {dict(record)}")
    rows = [Held(*row) for row in zip(*lists, strict=True)]
    for held in rows:
        if not isinstance(held.domain, str) or not all(
            isinstance(n, int) and n >= 0 for n in (held.train_examples, held.evaluate_examples)
        ):
            raise ValueError(f"expected each domain once with its counts, got {dict(record)}")
    return tuple(rows)


def encode_tensor(tensor: Tensor) -> Array:
    """Serialise one tensor with a single copy of its bytes.

    Args:
        tensor: Any shape; any dtype that NumPy has (bfloat16 is refused, since the .npy format has no such type).

    Returns:
        A Flower ``Array`` equal to ``Array(tensor)``; on the way the values are copied once instead of twice.

    Raises:
        TypeError: The dtype has no NumPy counterpart.
    """
    shape = tuple(tensor.shape)
    array = np.ascontiguousarray(tensor.detach().contiguous().cpu().numpy()).reshape(-1)
    data = b"".join((_header(shape, array.dtype), array.view(np.uint8).data if array.size else b""))
    return Array(dtype=str(array.dtype), shape=shape, stype="numpy.ndarray", data=data)


def decode_array(array: Array) -> Tensor:
    """Read one tensor without copying: it shares the message's immutable bytes and must not be written to.

    Raises:
        ValueError: The bytes are no .npy array, or not the announced shape and dtype.
    """
    if array.stype != "numpy.ndarray":
        raise ValueError(f"expected an array serialised as numpy.ndarray, got {array.stype!r}")
    try:
        return _decode(array)
    except Exception as error:  # noqa: BLE001 - foreign bytes: NumPy's header parser raises nearly anything
        raise ValueError(f"expected a .npy array of plain numbers: {type(error).__name__}: {error}") from None


def _decode(array: Array) -> Tensor:
    length = 10 + int.from_bytes(array.data[8:10], "little")  # magic, version, length of the header, header
    shape, dtype = _parse_header(array.data[:length])
    values = np.frombuffer(array.data, dtype=dtype, offset=length)
    if values.size != int(np.prod(shape)) or tuple(shape) != tuple(array.shape):
        raise ValueError(f"expected shape {tuple(array.shape)}, got {values.size} values for header shape {shape}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values).reshape(shape)


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Write the .npy header of a C-ordered array."""
    stream = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


@lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read a .npy header; the few different ones of a run are parsed once each."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"expected .npy format version (1, 0), got {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or (fortran_order and len(shape) > 1):
        raise ValueError(f"expected plain numbers in C order, got dtype {dtype}, Fortran order {fortran_order}")
    return tuple(shape), dtype


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Serialise named tensors, in their order; those on a device are fetched together."""
    away = {name: tensor for name, tensor in tensors.items() if tensor.device.type != "cpu"}
    tensors = {**tensors, **copy_together(away, torch.device("cpu"))}
    return ArrayRecord({name: encode_tensor(tensor) for name, tensor in tensors.items()})


def decode_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Read named tensors; they share the record's bytes (see :func:`decode_array`)."""
    return {str(name): decode_array(array) for name, array in record.items()}


def array_bytes(content: RecordDict) -> int:
    """Count the bytes of the arrays in a message's content (configuration and metrics are a few hundred more)."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def evaluation_metrics(examples: int, loss: float, accuracy: float, *, of: str = "") -> dict[str, int | float]:
    """Name what a client measured on one split, as the reply to an evaluate message does.

    Args:
        examples: Number of examples evaluated.
        loss: Their mean loss.
        accuracy: In [0, 1].
        of: Empty, or :data:`OUT` for the out split of a target.
    """
    return {f"{of}{NUM_EXAMPLES}": examples, f"{of}loss": loss, f"{of}accuracy": accuracy}


def metrics_of(content: RecordDict, key: str = METRICS) -> dict[str, float]:
    """Read the scalar metrics of a reply."""
    record = content.get(key)
    if not isinstance(record, MetricRecord):
        raise ValueError(f"expected a MetricRecord {key!r} in the reply, got {sorted(content)}")
    return {str(name): float(value) for name, value in record.items() if not isinstance(value, list)}
