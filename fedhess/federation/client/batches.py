"""The batches of a client: which examples a step sees."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedhess.base.seeds import batch_indices, seeded_generator
from fedhess.domains.partition import batch_sizes
from fedhess.federation.client.augmentation import augment
from fedhess.settings.run_config import RunConfig


class BatchSource(Protocol):
    """Where the batches of a client come from."""

    @property
    def train_size(self) -> int:
        """Number of training examples."""

    @property
    def key(self) -> tuple[str | int, ...]:
        """What names the client's stream of batches: (seed, domain, client)."""

    def train_batches(self, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches of training examples by position: inputs and labels on the model's device."""

    def train_aspects(self, positions: Tensor) -> Tensor | None:
        """Give width by height of training images before they were resized, or None where that is unknown."""


def step_batches(data: BatchSource, config: RunConfig, *, steps: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Fetch and augment the batches of several steps, one after the other.

    A step always sees the same batch, whether a statistic or an update is computed from it.

    Args:
        data: The client's data.
        config: Gives the batch size and the augmentation.
        steps: Numbers of the steps since the beginning of the run, from 0.
    """
    positions = [
        batch_indices(
            data.train_size,
            batch_size=config.batch_size,
            step=step,
            key=data.key,
            keeps_rest=config.local_epochs > 0,
        )
        for step in steps
    ]
    for step, chosen, (inputs, labels) in zip(steps, positions, data.train_batches(positions), strict=True):
        if config.augment == "none":
            yield inputs, labels
        else:
            generator = seeded_generator(*data.key, "augmentation", step)
            yield augment(inputs, generator=generator, aspects=data.train_aspects(chosen)), labels


def round_batch(data: BatchSource, config: RunConfig, *, step: int, batches: int = 1) -> tuple[Tensor, Tensor]:
    """Fetch the batch of a step, or the union of the batches of several steps beginning there.

    Args:
        data: The client's data.
        config: Gives the batch size.
        step: Number of the step since the beginning of the run, from 0.
        batches: How many consecutive batches are taken together (the statistics of a round may want more than one).
    """
    if config.batch_size == 0:
        batches = 1
    parts = list(step_batches(data, config, steps=range(step, step + batches)))
    if batches == 1:
        return parts[0]
    inputs, labels = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def joint_batch(
    holdings: Sequence[BatchSource], config: RunConfig, *, step: int, batches: int = 1
) -> tuple[Tensor, Tensor, list[int]]:
    """Fetch the batch of a step from everything that a client holds, domain after domain.

    Args:
        holdings: The client's data, by domain.
        config: Gives the batch size, which the domains share by :func:`fedhess.domains.partition.batch_sizes`.
        step: Number of the step since the beginning of the run, from 0.
        batches: See :func:`round_batch`.

    Returns:
        Inputs, labels, and how many of them are of each domain.
    """
    return _joined([round_batch(data, own, step=step, batches=batches) for data, own in _shared(holdings, config)])


def joint_batches(
    holdings: Sequence[BatchSource], config: RunConfig, *, steps: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Fetch what :func:`joint_batch` gives for several steps, one after the other."""
    streams = [step_batches(data, own, steps=steps) for data, own in _shared(holdings, config)]
    return map(_joined, zip(*streams, strict=True))


def _shared(holdings: Sequence[BatchSource], config: RunConfig) -> list[tuple[BatchSource, RunConfig]]:
    """Give each domain of a client its part of the batch."""
    if len(holdings) == 1:
        return [(holdings[0], config)]
    sizes = batch_sizes([data.train_size for data in holdings], config.batch_size)
    return [(data, config.model_copy(update={"batch_size": n})) for data, n in zip(holdings, sizes, strict=True)]


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    sizes = [len(labels) for _, labels in pairs]
    if len(pairs) == 1:
        return *pairs[0], sizes
    inputs, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    return inputs, labels, sizes
