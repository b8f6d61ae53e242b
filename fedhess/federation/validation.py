"""Decide whether a client's tensors and metrics can be trusted: present, of the right shape, finite."""

from collections.abc import Mapping

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedhess.federation import protocol
from fedhess.federation.protocol import decode_array


class NotFiniteError(ValueError):
    """A tensor has values that are not finite."""


def read_tensors(content: RecordDict, key: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decode the tensors of a reply and check them before they touch anything.

    Args:
        content: A client's reply.
        key: Name of the array record.
        like: The tensors that are expected, by name; shapes and dtypes are compared.

    Returns:
        The tensors, in the order of ``like``.

    Raises:
        ValueError: The record or a tensor is missing, unexpected, of another shape or dtype, or not finite
            (`NotFiniteError`). The message says which.
    """
    record = content.array_records.get(key)
    if record is None:
        raise ValueError(f"expected arrays {key!r} in the reply, got records {sorted(content)}")
    if set(record) != set(like):
        missing, extra = sorted(set(like) - set(record)), sorted(set(record) - set(like))
        raise ValueError(f"{key}: tensors missing {missing}, unexpected {extra}")
    tensors: dict[str, Tensor] = {}
    for name, expected in like.items():
        announced = record[name]
        if tuple(announced.shape) != tuple(expected.shape):
            raise ValueError(f"{key}: {name} has shape {tuple(announced.shape)}, expected {tuple(expected.shape)}")
        tensor = decode_array(announced)
        if tensor.dtype != expected.dtype:
            raise ValueError(f"{key}: {name} has dtype {tensor.dtype}, expected {expected.dtype}")
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFiniteError(f"{key}: {name} has {bad} of {tensor.numel()} values that are not finite")
        tensors[name] = tensor
    return tensors


def training_metrics_of(content: RecordDict) -> dict[str, float]:
    """Read the metrics of a train reply, which Flower's strategies average: the same numbers from every client.

    Raises:
        ValueError: One is missing, unexpected or a list.
    """
    metrics = protocol.metrics_of(content)
    names = set(content.metric_records[protocol.METRICS])
    if not names == metrics.keys() == set(protocol.TRAINING_METRICS):
        raise ValueError(
            f"expected the metrics {', '.join(protocol.TRAINING_METRICS)}, a number each, got {sorted(names)}"
        )
    return metrics


def is_finite(tensor: Tensor) -> bool:
    """Whether every value of a tensor is finite; integers always are."""
    if not tensor.is_floating_point():
        return True
    # One pass without a temporary; only a sum that overflows needs the exact look.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
