"""Settings as text: ``key=value,...`` of the command line, and lists and dictionaries of a run config."""

import json
import math

from fedhess.base.errors import UsageError

Scalar = str | int | float | bool

_JSON_NAMES = {list: "array", dict: "object"}


def decode(wire_key: str, text: Scalar) -> object:
    """Read a list or dictionary of a run config: JSON, or as on the command line."""
    if not isinstance(text, str):
        raise UsageError(f"run config, {wire_key}: expected a text, got {text!r}")
    if not text.lstrip().startswith(("{", "[")):
        if wire_key in ("sources", "targets"):
            return [name.strip() for name in text.split(",") if name.strip()]
        return parse_assignments(text, option=f"run config, {wire_key}")
    try:
        decoded: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"run config, {wire_key}: expected JSON, got {text!r} ({error})") from None
    expected = list if wire_key in ("sources", "targets") else dict
    if not isinstance(decoded, expected):
        raise UsageError(f"run config, {wire_key}: expected a JSON {_JSON_NAMES[expected]}, got {text!r}")
    return decoded


def parse_assignments(text: str, *, option: str) -> dict[str, Scalar]:
    """Read ``"alpha=1e-3,probes=8"`` into a dictionary of scalars; ``option`` is for messages.

    >>> parse_assignments("alpha=1e-3,form=mean_of_hgp", option="--strategy-args")
    {'alpha': 0.001, 'form': 'mean_of_hgp'}
    """
    values: dict[str, Scalar] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.partition("=")
        owner, dot, name = key.strip().rpartition(".")  # an owner is a strategy's name, which keeps its dashes
        key = owner + dot + name.replace("-", "_")
        if not separator or not key or not value.strip():
            raise UsageError(f"{option}: expected key=value[,key=value...], got {part!r}")
        if key in values:
            raise UsageError(f"{option}: {key!r} is given twice; give it once")
        values[key] = parse_scalar(value.strip())
    return values


def parse_scalar(text: str) -> Scalar:
    """Read a bool, an int of 64 bits, a finite float, or else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        whole = int(text)
    except ValueError:
        pass
    else:
        if -(2**63) <= whole < 2**63:
            return whole
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
