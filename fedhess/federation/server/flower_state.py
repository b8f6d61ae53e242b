"""What a plain Flower strategy remembers between rounds, taken from its attributes and put back."""

import logging
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedhess.federation.protocol import decode_tensors, encode_tensors

logger = logging.getLogger(__name__)


def flower_state(strategy: Strategy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state of a strategy that has no ``state_dict`` of its own.

    Flower's strategies keep it in attributes: numbers (an adaptive clipping norm), dictionaries of arrays (FedOpt's
    moments), lists of arrays (FedAvgM's momentum), single arrays, and array records (its model). An attribute of
    another kind is reported once in the log, unless it is a function: it cannot be written, and a resumed run has the
    constructor's.

    Returns:
        Tensors by ``"ATTRIBUTE/KEY"``, and by attribute what is no tensor: ``{"value": ...}``, or ``{"kind": ...,
        "keys": [...]}`` which says how the tensors belong together.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for attribute, value in vars(strategy).items():
        parts = _parts(value)
        if parts is not None:
            kind, arrays = parts
            plain[attribute] = {"kind": kind, "keys": list(arrays)}
            tensors |= {f"{attribute}/{key}": array for key, array in arrays.items()}
        elif value is None or isinstance(value, bool | int | float | str):
            plain[attribute] = {"value": value}
        elif not callable(value) and not (isinstance(value, dict | list | tuple) and not value):
            _warn(type(strategy).__name__, attribute, type(value).__name__)
    return tensors, plain


def restore_flower_state(strategy: Strategy, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put back what :func:`flower_state` read."""
    for attribute, entry in plain.items():
        if "value" in entry:
            setattr(strategy, attribute, entry["value"])
            continue
        arrays = {key: tensors[f"{attribute}/{key}"] for key in entry["keys"]}
        if entry["kind"] == "record":
            setattr(strategy, attribute, encode_tensors(arrays))
        elif entry["kind"] == "array":
            setattr(strategy, attribute, arrays[""].numpy())
        elif entry["kind"] == "list":
            setattr(strategy, attribute, [value.numpy() for value in arrays.values()])
        else:
            setattr(strategy, attribute, {key: value.numpy() for key, value in arrays.items()})


def _parts(value: object) -> tuple[str, dict[str, Tensor]] | None:
    """Take arrays apart: their kind and tensors by key; None for anything else."""
    if isinstance(value, ArrayRecord):
        return "record", decode_tensors(value)
    if isinstance(value, np.ndarray):
        return "array", {"": _tensor(value)}
    if isinstance(value, dict) and value and all(isinstance(inner, np.ndarray) for inner in value.values()):
        return "dict", {str(key): _tensor(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and value and all(isinstance(inner, np.ndarray) for inner in value):
        return "list", {str(index): _tensor(inner) for index, inner in enumerate(value)}
    return None


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


_warned: set[tuple[str, str]] = set()


def _warn(strategy: str, attribute: str, kind: str) -> None:
    if (strategy, attribute) not in _warned:
        _warned.add((strategy, attribute))
        logger.warning(
            "%s.%s is a %s, which no checkpoint can hold: a resumed run begins with the constructor's",
            strategy, attribute, kind,
        )  # fmt: skip
