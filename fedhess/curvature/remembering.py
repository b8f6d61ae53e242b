"""A memory of values computed from tensors, which notices when those tensors are written to."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


class _Entry(NamedTuple):
    value: Tensor | tuple[Tensor, ...]
    versions: list[int]
    of: Tensor | None
    of_version: int


class Memory:
    """Remember values by name, each as long as what it was computed from, and itself, stays unwritten.

    Writes are seen through autograd's version counters and a change of storage, as for tensors saved for backward.
    Nothing is remembered while a graph is being recorded, nor for inference tensors, which have no counter.

    >>> memory, source = Memory(), torch.ones(2)
    >>> memory.recall("sum", source.sum, (source,), None)
    tensor(2.)
    >>> source += 1
    >>> memory.recall("sum", source.sum, (source,), None)
    tensor(4.)
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def recall(self, name: str, compute: Callable[[], Value], sources: tuple[Tensor, ...], of: Tensor | None) -> Value:
        """Return ``compute()``, or what it gave before.

        Args:
            name: What is computed.
            compute: Computes it from ``sources`` and ``of`` alone.
            sources: Tensors that must be the same objects at every call.
            of: A further tensor, perhaps another at every call; on the CPU an equal one counts as the same.

        Returns:
            The value. Not to be written into: a written value is computed again.
        """
        needed = sources if of is None else (*sources, of)
        recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needed)
        if recording or any(tensor.is_inference() for tensor in needed):
            return compute()
        entry = self._entries.get(name)
        if entry is not None and _is_same(entry, of) and entry.versions == _versions(sources, entry.value):
            return entry.value  # type: ignore[return-value]  # what this name's compute gave
        value = compute()
        if not torch.is_inference_mode_enabled():
            self._entries[name] = _Entry(value, _versions(sources, value), of, -1 if of is None else of._version)
        return value


def _versions(sources: tuple[Tensor, ...], value: Tensor | tuple[Tensor, ...]) -> list[int]:
    values = (value,) if isinstance(value, Tensor) else value
    return [tensor._version for tensor in (*sources, *values)] + [tensor.data_ptr() for tensor in sources]


def _is_same(entry: _Entry, of: Tensor | None) -> bool:
    if entry.of is None or of is None:
        return entry.of is of
    if entry.of._version != entry.of_version:
        return False
    return of is entry.of or (of.device.type == "cpu" and torch.equal(of, entry.of))
