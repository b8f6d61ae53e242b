"""Deterministic randomness: seeds and batches as functions of (seed, domain, client, round, step) and nothing else."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: str | int) -> int:
    """Hash the parts that name a random decision into a 63-bit seed.

    The value depends on the parts alone, for example ``(seed, "batches", domain, client, epoch)``, never on process,
    platform or the order of calls.

    >>> derive_seed(0, "batches", "photo") == derive_seed(1, "batches", "photo")
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_generator(*parts: str | int) -> torch.Generator:
    """Make a CPU generator seeded with :func:`derive_seed` of the parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def seeded_globally(*parts: str | int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's global generators, and that of a CUDA ``device``, with the parts, and restore them afterwards.

    Meant for third-party code that may draw from these generators; our own code takes a generator.
    """
    seed = derive_seed(*parts)
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def steps_per_pass(size: int, *, batch_size: int, keeps_rest: bool) -> int:
    """Count the steps of one pass over the data.

    Args:
        size: Number of examples N.
        batch_size: Examples per step B; 0, or any B >= N, means all examples in one step.
        keeps_rest: Whether the last N mod B examples form a smaller batch.

    >>> steps_per_pass(70, batch_size=32, keeps_rest=False), steps_per_pass(70, batch_size=32, keeps_rest=True)
    (2, 3)
    """
    if batch_size == 0 or batch_size >= size:
        return 1
    return -(-size // batch_size) if keeps_rest else size // batch_size


def batch_indices(
    size: int, *, batch_size: int, step: int, key: tuple[str | int, ...], keeps_rest: bool = False
) -> Tensor:
    """Choose the examples of one training step: shuffled passes over the data, the last partial batch dropped or kept.

    Stateless, so that a restarted client continues with the same batches: step ``s`` belongs to pass
    ``s // steps_per_pass``, and the permutation of a pass is drawn from ``key`` and the number of the pass.

    Args:
        size: Number of examples N.
        batch_size: Examples per step B; 0, or any B >= N, means all examples in their order.
        step: Number of the step since the beginning of the run, from 0.
        key: Identifies the stream, for example ``(seed, domain, client)``.
        keeps_rest: Whether the last partial batch of a pass is a step too.

    Returns:
        Indices in [0, N), shape (min(B, N),), int64; fewer for a partial batch.
    """
    if batch_size == 0 or batch_size >= size:
        return torch.arange(size)
    epoch, position = divmod(step, steps_per_pass(size, batch_size=batch_size, keeps_rest=keeps_rest))
    order = torch.randperm(size, generator=seeded_generator(*key, "batches", epoch))
    return order[position * batch_size : (position + 1) * batch_size]
