"""The batches of a client: which examples a step sees."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedhess.base.seeds import batch_indices, seeded_generator, steps_per_pass
from fedhess.domains.partition import batch_sizes
from fedhess.federation.client.augmentation import augment
from fedhess.models.prepared import LocalDomain
from fedhess.settings.run_config import RunConfig


def step_batches(data: LocalDomain, config: RunConfig, *, steps: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Read and augment the batches of steps, counted from 0 since the beginning of the run.

    A step always sees the same batch, whether a statistic or an update is computed from it.
    """
    size, keeps_rest = config.batch_size, config.local_epochs > 0
    positions = [
        batch_indices(data.train_size, batch_size=size, step=step, key=data.key, keeps_rest=keeps_rest)
        for step in steps
    ]
    for step, chosen, (inputs, labels) in zip(steps, positions, data.train_batches(positions), strict=True):
        if config.augment == "none":
            yield inputs, labels
        else:
            generator = seeded_generator(*data.key, "augmentation", step)
            yield augment(inputs, generator=generator, aspects=data.train_aspects(chosen)), labels


def round_batch(data: LocalDomain, config: RunConfig, *, step: int, batches: int = 1) -> tuple[Tensor, Tensor]:
    """Read the batch of a step, or the union of ``batches`` steps' batches from there on; a full batch is read once."""
    if config.batch_size == 0:
        batches = 1
    parts = list(step_batches(data, config, steps=range(step, step + batches)))
    if batches == 1:
        return parts[0]
    inputs, labels = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def joint_batch(
    parts: Sequence[LocalDomain], config: RunConfig, *, step: int, batches: int = 1
) -> tuple[Tensor, Tensor, list[int]]:
    """Concatenate the `round_batch` of each domain of a client; also return the number of examples of each."""
    return _joined([round_batch(data, own, step=step, batches=batches) for data, own in _shared(parts, config)])


def joint_batches(
    parts: Sequence[LocalDomain], config: RunConfig, *, steps: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Read the `joint_batch` of each step."""
    streams = [step_batches(data, own, steps=steps) for data, own in _shared(parts, config)]
    return map(_joined, zip(*streams, strict=True))


def examples_in_answers(parts: Sequence[LocalDomain], config: RunConfig, *, steps: range) -> list[list[float]]:
    """For each step of a round, return how many examples of each domain its batch stands for in the round's statistics.

    These are of the first ``statistics_batches`` batches. A batch among them stands for its share of all that the
    client holds; one of the same pass for none, since its examples are others; one of another pass, which is drawn
    independently, for its own number; and so does one of all examples.
    """
    found: list[list[float]] = [[] for _ in steps]
    for data, own in _shared(parts, config):
        held, size = data.train_size, min(own.batch_size or data.train_size, data.train_size)
        per_pass = steps_per_pass(held, batch_size=size, keeps_rest=config.local_epochs > 0)
        for row, step in zip(found, steps, strict=True):
            if size == held or config.references == "previous":
                row.append(size)
            elif step - steps[0] < config.statistics_batches:
                row.append(held / config.statistics_batches)
            else:
                row.append(0.0 if step // per_pass == steps[0] // per_pass else size)
    return found


def _shared(parts: Sequence[LocalDomain], config: RunConfig) -> list[tuple[LocalDomain, RunConfig]]:
    """Pair each domain with settings whose batch size is the domain's share of the client's batch size."""
    if len(parts) == 1:
        return [(parts[0], config)]
    sizes = batch_sizes([data.train_size for data in parts], config.batch_size)
    return [(data, config.model_copy(update={"batch_size": n})) for data, n in zip(parts, sizes, strict=True)]


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    sizes = [len(labels) for _, labels in pairs]
    if len(pairs) == 1:
        return *pairs[0], sizes
    inputs, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    return inputs, labels, sizes
