"""What a client is asked about statistics, as records of a message; several requests fit into one message."""

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedhess.federation import protocol
from fedhess.federation.protocol import Part
from fedhess.settings.run_config import Scalar


def encode_request(names: Sequence[str], given: Mapping[str, Tensor | Scalar]) -> dict[str, ArrayRecord | ConfigRecord]:
    """Write what a client is asked: names of statistics, and the tensors and scalars that their functions take."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    return {
        protocol.CONFIG: ConfigRecord({protocol.NAMES: list(names)}),
        protocol.GIVEN: protocol.encode_tensors(tensors),
        protocol.GIVEN_SCALARS: ConfigRecord(dict(scalars)),
    }


def decode_request(content: RecordDict) -> tuple[list[str], dict[str, Tensor | Scalar]]:
    """Read what :func:`encode_request` wrote: names, and what the functions are given (tensors share its bytes)."""
    names = content.config_records.get(protocol.CONFIG, ConfigRecord()).get(protocol.NAMES)
    tensors = protocol.decode_tensors(content.array_records.get(protocol.GIVEN, ArrayRecord()))
    scalars = content.config_records.get(protocol.GIVEN_SCALARS, ConfigRecord())
    given = {str(name): value for name, value in scalars.items() if isinstance(value, str | int | float)}
    return [str(name) for name in names] if isinstance(names, list) else [], given | tensors


def numbered(records: Mapping[str, Part], call: int) -> dict[str, Part]:
    """Rename the records of a request, or of its answer, so that several fit into one message: ``"call-0/given"``."""
    return {f"{protocol.CALL}{call}/{name}": record for name, record in records.items()}


def numbered_parts(content: RecordDict) -> list[RecordDict]:
    """Take the requests or answers that :func:`numbered` put into a message out again, in their order."""
    found: dict[int, RecordDict] = {}
    for key, record in content.items():
        number, _, name = key.removeprefix(protocol.CALL).partition("/")
        if key.startswith(protocol.CALL) and number.isdecimal():
            found.setdefault(int(number), RecordDict())[name] = record
    return [found[number] for number in sorted(found)]
