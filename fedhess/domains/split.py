"""Split a domain in two: the larger part is for training, or for a target's accuracy; the smaller is held out.

There are two rules: ours, by class and by drawing, and DomainBed's own draw, for comparison with other work.
"""

import hashlib
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedhess.base.files import digest_of
from fedhess.domains.benchmark import SOURCE
from fedhess.domains.domain import DomainData

SplitRule = Literal["sources", "every", "domainbed"]


def split_domain(
    data: DomainData, *, rule: SplitRule, holdout: float, seed: int, position: int
) -> tuple[Tensor, Tensor]:
    """Split a domain into kept and held-out indices by a run's rule.

    This is :func:`split_as_domainbed` for ``"domainbed"``, else :func:`split_indices`. The caller decides which domains
    are split: the sources or all.
    """
    if rule == "domainbed":
        return split_as_domainbed(len(data), holdout=holdout, trial_seed=seed, position=position)
    return split_indices(data, holdout=holdout, seed=seed)


def split_as_domainbed(size: int, *, holdout: float, trial_seed: int, position: int) -> tuple[Tensor, Tensor]:
    """Split a domain's examples as DomainBed does, index for index.

    The example numbers are shuffled by NumPy's legacy generator, seeded with the MD5 of the text ``(trial_seed,
    position)`` modulo 2^31; the first ``floor(holdout * N)`` are held out. Classes and drawings are ignored.
    Source: Gulrajani and Lopez-Paz, ICLR 2021, released code, ``scripts/train.py`` and ``lib/misc.py``. If files are
    listed in the same order (ImageFolder's: class by class, by name), the splits hold exactly the same images.

    Args:
        size: Number of examples N.
        holdout: Fraction held out, in [0, 1); DomainBed's is 0.2.
        trial_seed: DomainBed's are 0, 1, 2.
        position: Position of the domain among the benchmark's sorted domains, from 0.

    Returns:
        (in split, out split), sorted int64; disjoint and together every example once.

    >>> split_as_domainbed(10, holdout=0.2, trial_seed=0, position=0)[1].tolist()
    [2, 3]
    """
    assert 0 <= holdout < 1, holdout
    digest = hashlib.md5(str((trial_seed, position)).encode("utf-8")).hexdigest()
    order = list(range(size))
    np.random.RandomState(int(digest, 16) % 2**31).shuffle(order)
    held = int(size * holdout)
    return torch.tensor(sorted(order[held:]), dtype=torch.int64), torch.tensor(sorted(order[:held]), dtype=torch.int64)


def split_indices(data: DomainData, *, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a domain, class by class, into kept and held-out indices.

    A class with three or more groups (drawings) is split by group: whole groups are held out, at least one, and as near
    to the fraction ``holdout`` of the groups as possible. A class with fewer groups is split by example. Deviation:
    DomainBed splits by example, ignoring classes; the split is stratified here, because a class has few drawings.

    Args:
        data: The domain.
        holdout: Fraction held out, in [0, 1). With 0 the validation split is the training split, the whole domain.
        seed: Seed of the run; the split depends only on it and on the domain's name.

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


def is_for_role(data: DomainData, role: str) -> Tensor:
    """Return a (N,) bool mask of the examples that a domain in this role may have; see ``DomainData.groups``."""
    if data.groups is None or int(data.groups.min()) >= 0:
        return torch.ones(len(data), dtype=torch.bool)
    return (data.groups >= 0) == (role == SOURCE)


def _held_out(members: Tensor, groups: Tensor | None, *, holdout: float, generator: torch.Generator) -> Tensor:
    """Choose the held-out examples among the ``members`` of one class."""
    names = torch.unique(groups[members]) if groups is not None else members
    if groups is not None and len(names) >= 3:
        count = max(1, math.floor(holdout * len(names) + 0.5))
        chosen = names[torch.randperm(len(names), generator=generator)[:count]]
        return members[torch.isin(groups[members], chosen)]
    count = min(len(members) - 1, math.floor(holdout * len(members) + 0.5))
    return members[torch.randperm(len(members), generator=generator)[: max(count, 0)]]
