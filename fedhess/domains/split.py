"""Split a source domain into training and validation examples."""

import math

import torch
from torch import Tensor

from fedhess.cache import digest_of
from fedhess.domains.data import DomainData


def split_indices(data: DomainData, *, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a domain, class by class, into training and validation indices.

    A class with three or more groups (drawings) is split by group: whole groups are held out, at least one, in
    number the nearest to ``holdout``. A class with fewer is split by example, which tells little about new drawings
    but is all that it allows. DomainBed splits by example, ignoring classes. Deviation: stratified,
    because a class has few drawings.

    Args:
        data: The domain.
        holdout: Fraction held out, in [0, 1). With 0 the validation split *is* the training split, the whole domain.
        seed: Of the run; the split depends on it and on the domain's name alone.

    Returns:
        (train, validation), sorted int64; disjoint and together every example once (unless ``holdout`` is 0).
    """
    assert 0 <= holdout < 1, holdout
    everything = torch.arange(len(data))
    if holdout == 0:
        return everything, everything
    generator = torch.Generator().manual_seed(int(digest_of(["split", str(seed), data.name])[:15], 16))
    held = torch.zeros(len(data), dtype=torch.bool)
    for label in range(int(data.labels.max()) + 1 if len(data) else 0):
        members = torch.nonzero(data.labels == label).flatten()
        held[_held_out(members, data.groups, holdout=holdout, generator=generator)] = True
    return everything[~held], everything[held]


def _held_out(members: Tensor, groups: Tensor | None, *, holdout: float, generator: torch.Generator) -> Tensor:
    """Choose the held-out examples among the ``members`` of one class."""
    names = torch.unique(groups[members]) if groups is not None else members
    if groups is not None and len(names) >= 3:
        count = max(1, math.floor(holdout * len(names) + 0.5))
        chosen = names[torch.randperm(len(names), generator=generator)[:count]]
        return members[torch.isin(groups[members], chosen)]
    count = min(len(members) - 1, math.floor(holdout * len(members) + 0.5))
    return members[torch.randperm(len(members), generator=generator)[: max(count, 0)]]
