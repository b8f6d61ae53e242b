"""Means that a hostile minority cannot move at will, in the place of :class:`fedhess.alignment.means.WeightedMean`.

All contributions have equal weight, because weights only say how many examples a client claims. They are all in memory
at once. None of these means is the centralised algorithm's: promise 1 of docs/design.md holds for ``mean`` alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from torch import Tensor

STEPS, TOLERANCE = 200, 1e-10  # of Weiszfeld's algorithm

Tensors = Mapping[str, Tensor]


def robust_mean(kind: str, contributions: Sequence[Tensors], *, hostile: int) -> dict[str, Tensor]:
    """Combine named tensors of several senders, given in a fixed order.

    ``median`` is the coordinate-wise median, as in Flower's FedMedian. ``trimmed`` is the coordinate-wise mean without
    the ``hostile`` largest and smallest values, by Flower's ``trim_mean`` (both: Yin et al., "Byzantine-Robust
    Distributed Learning", ICML 2018). ``geometric`` is the point with the least sum of distances to all contributions
    (Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022). ``krum`` takes the one contribution
    that is nearest to its neighbours, ``multikrum`` the mean of the n - hostile nearest, both by Flower's
    ``select_multikrum`` (Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017).

    Args:
        kind: Name of the mean, as above.
        contributions: Tensors by name of each sender. Distances are over all names together.
        hostile: How many senders may be hostile; if fewer than 2 * hostile + 1 contributed, the largest minority.

    Returns:
        Tensors by name, in the dtypes of the contributions; float64 for whole numbers.

    >>> values = [{"": torch.tensor([value])} for value in (1.0, 2.0, 4.0, 1e6)]
    >>> [float(robust_mean(kind, values, hostile=1)[""]) for kind in ("median", "trimmed", "krum")]
    [3.0, 3.0, 1.0]
    """
    first = contributions[0]
    sizes = [tensor.numel() for tensor in first.values()]
    points = np.stack(
        [np.concatenate([tensor.double().reshape(-1).numpy() for tensor in each.values()]) for each in contributions]
    )
    combined = torch.from_numpy(MEANS[kind](points, min(hostile, (len(points) - 1) // 2)))
    parts = zip(first.items(), torch.split(combined, sizes), strict=True)
    return {
        name: part.reshape(like.shape).to(like.dtype if like.is_floating_point() else part.dtype)
        for (name, like), part in parts
    }


def _geometric(points: np.ndarray) -> np.ndarray:
    """Weiszfeld's algorithm from the coordinate-wise median; smoothed as in Pillutla et al., relative to distances."""
    own = torch.from_numpy(points)
    centre = torch.from_numpy(np.median(points, axis=0))
    for _ in range(STEPS):
        distances = (own - centre).norm(dim=1)
        near = distances.median()
        if near == 0:  # half of the points are at the centre
            break
        weights = 1 / distances.clamp_min(1e-6 * near)
        moved = (weights.unsqueeze(1) * own).sum(0) / weights.sum()
        step, centre = (moved - centre).norm(), moved
        if step <= TOLERANCE * near:
            break
    return centre.numpy()


def _selected(points: np.ndarray, hostile: int, number: int) -> np.ndarray:
    contents = [RecordDict({"": ArrayRecord({"": Array(point)})}) for point in points]
    chosen = select_multikrum(contents, hostile, number)
    ordered = [point for point, content in zip(points, contents, strict=True) if any(content is c for c in chosen)]
    return np.asarray(np.mean(ordered, axis=0))


MEANS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "median": lambda points, _: np.asarray(np.median(points, axis=0)),
    # trim_mean multiplies its share by the number of points and rounds down.
    "trimmed": lambda points, hostile: trim_mean(points, (hostile + 0.25) / len(points)),
    "geometric": lambda points, _: _geometric(points),
    "krum": lambda points, hostile: _selected(points, hostile, 1),
    "multikrum": lambda points, hostile: _selected(points, hostile, len(points) - hostile),
}
