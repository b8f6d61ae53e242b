"""The transfer measure between domains, by projected gradient ascent over heads, and its bound by Hessians.

With L_D the loss of domain D as a function of the head theta and L_D* its minimum over heads, the transfer measure over
a set of heads Gamma is

    T(S || T) = sup over theta in Gamma of [(L_T(theta) - L_T*) - (L_S(theta) - L_S*)]

(Zhang, Zhao, Yu, Poupart, "Quantifying and Improving Transferability in Domain Generalization", NeurIPS 2021, arXiv
2106.03632; used by Hemati, Zhang, Estiri, Chen, ICCV 2023, arXiv 2308.11778). Here Gamma is the ball of radius delta
around the trained head theta_0, and the bound is delta^2 / 2 * ||H_T - H_S||_2.

**What the bound assumes.** Expand both losses at theta_0, with d = theta - theta_0:

    L_T - L_S = const + <g_T - g_S, d> + d^T (H_T - H_S) d / 2 + O(|d|^3)

The bound drops the constant, which is right where L_D* = L_D(theta_0), and the linear term, which is right where
g_T = g_S = 0: theta_0 must be optimal for both domains, and delta small enough for the cubic term. A trained head is
optimal for no single domain and the target has never been seen. So three things are computed and kept apart:

- *tilted*: the measure of the losses L_D(theta) - <g_D, d>. They are convex with their minimum at theta_0 and have the
  Hessians of the L_D: they satisfy the assumptions exactly, and the bound must hold up to the cubic term.
- *actual*: the measure of the losses as they are, with L_D* replaced by L_D(theta_0) in both domains, beside the bound
  with the term that the assumptions drop, delta * ||g_T - g_S|| + delta^2 / 2 * ||H_T - H_S||_2.
- *excess gap*: (L_T(theta_0) - L_T*) - (L_S(theta_0) - L_S*), with L_D* the minimum over all heads. Added to *actual*
  it gives the transfer measure as defined. It does not depend on delta, and features that separate the classes make
  every L_D* zero.

The theorem's own wording could not be read here; assumptions and bound are derived above.

Shape suffixes: R restarts, C classes, K = D + 1 with the bias column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhess.curvature.lanczos import dominant_eigenvector
from fedhess.simulations.transfer.landscapes import Landscape

STEPS = 200
RESTARTS = 8
STILL = 1e-7  # relative gain below which a step counts as no gain
PATIENCE = 8  # steps without gain, each a quarter as long, after which the search ends
LONGEST = 1024.0  # step length in radii: as good as infinite


@dataclass(frozen=True)
class TransferPoint:
    """Transfer measures and bounds at one radius."""

    delta: float  # radius of the ball of heads
    tilted: float  # measure where the assumptions hold
    bound: float  # delta^2 / 2 * ||H_T - H_S||_2
    actual: float  # measure of the losses as they are, zero at the trained head
    actual_bound: float  # the bound with the difference of the gradients


def transfer_curve(
    source: Landscape, target: Landscape, centre: Tensor, *, deltas: Sequence[float], seed: int
) -> list[TransferPoint]:
    """Compute transfer measures and bounds over a range of radii.

    Args:
        source: Loss of the source domains as a function of the head.
        target: Loss of the target domain.
        centre: The trained head theta_0, (C, K), float64.
        deltas: Radii, ascending, positive.
        seed: For the random restarts.

    Returns:
        One point per radius. Each search also starts along the best point of the previous radius, to keep measures from
        falling.
    """
    slope_CK = target.gradient(centre) - source.gradient(centre)

    def curvature_gap(vector_CK: Tensor) -> Tensor:
        return target.hvp(centre, vector_CK) - source.hvp(centre, vector_CK)

    eigenvector_CK = dominant_eigenvector(curvature_gap, centre)
    norm = abs(float((eigenvector_CK * curvature_gap(eigenvector_CK)).sum()))
    at_centre = target.value_and_gradient(centre[None])[0] - source.value_and_gradient(centre[None])[0]

    def difference(steps_RCK: Tensor) -> tuple[Tensor, Tensor]:
        value_t, gradient_t = target.value_and_gradient(centre + steps_RCK)
        value_s, gradient_s = source.value_and_gradient(centre + steps_RCK)
        return value_t - value_s - at_centre, gradient_t - gradient_s

    def tilted(steps_RCK: Tensor) -> tuple[Tensor, Tensor]:
        values_R, gradients_RCK = difference(steps_RCK)
        return values_R - (slope_CK * steps_RCK).sum((1, 2)), gradients_RCK - slope_CK

    points: list[TransferPoint] = []
    starts: dict[str, list[Tensor]] = {"tilted": [eigenvector_CK], "actual": [eigenvector_CK, slope_CK]}
    for delta in deltas:
        values: dict[str, float] = {}
        for name, objective in (("tilted", tilted), ("actual", difference)):
            values[name], best_CK = ascend(objective, centre, delta=delta, starts=starts[name], seed=seed)
            if float(best_CK.norm()) > 0:
                starts[name] = [*starts[name][:2], best_CK]
        bound = delta**2 / 2 * norm
        actual_bound = delta * float(slope_CK.norm()) + bound
        points.append(TransferPoint(delta, values["tilted"], bound, values["actual"], actual_bound))
    return points


@torch.no_grad()
def ascend(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    centre: Tensor,
    *,
    delta: float,
    starts: Sequence[Tensor],
    seed: int,
) -> tuple[float, Tensor]:
    """Maximise over the ball |d| <= delta by projected gradient ascent from several starts, all at once.

    A step goes along the gradient and is projected onto the ball. It is kept only if it does not lower the value; the
    step length then doubles, otherwise it is quartered. So every restart rises, and for a convex objective long steps
    are power iteration. A supremum found by search is a lower bound of the true one.

    Args:
        objective: Steps (R, C, K) to values (R,) and gradients (R, C, K), zero at d = 0.
        centre: Gives the shape (C, K).
        delta: Radius.
        starts: Directions to start along, (C, K), with both signs; :data:`RESTARTS` random ones and d = 0 are added.
        seed: For the random ones.

    Returns:
        The largest value found, and where, as the step d from the centre, (C, K).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn_RCK = torch.randn(RESTARTS, *centre.shape, generator=generator, dtype=torch.float64).to(centre)
    directions_RCK = torch.cat([*(torch.stack([start, -start]) for start in starts), drawn_RCK])
    norms_R11 = _norms(directions_RCK)
    points_RCK = torch.cat([delta * directions_RCK / norms_R11.clamp_min(1e-300), torch.zeros_like(centre)[None]])
    values_R, gradients_RCK = objective(points_RCK)
    lengths_R = torch.full_like(values_R, delta)  # of the step before projection
    still = 0
    for _ in range(STEPS):
        along_RCK = gradients_RCK / _norms(gradients_RCK).clamp_min(1e-300)
        tried_RCK = _project(points_RCK + lengths_R[:, None, None] * along_RCK, delta)
        tried_values_R, tried_gradients_RCK = objective(tried_RCK)
        better_R = tried_values_R >= values_R
        gain = float((tried_values_R - values_R).max())
        points_RCK = torch.where(better_R[:, None, None], tried_RCK, points_RCK)
        gradients_RCK = torch.where(better_R[:, None, None], tried_gradients_RCK, gradients_RCK)
        values_R = torch.where(better_R, tried_values_R, values_R)
        lengths_R = torch.where(better_R, (2 * lengths_R).clamp_max(LONGEST * delta), lengths_R / 4)
        still = still + 1 if gain <= STILL * float(values_R.abs().max()) else 0
        if still == PATIENCE:
            break
    best = int(values_R.argmax())
    return float(values_R[best]), points_RCK[best]


def _project(steps_RCK: Tensor, delta: float) -> Tensor:
    return steps_RCK * (delta / _norms(steps_RCK).clamp_min(delta))


def _norms(steps_RCK: Tensor) -> Tensor:
    return steps_RCK.square().sum((1, 2), keepdim=True).sqrt()
