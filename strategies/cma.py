"""CMA: align the domains' whole head Hessians and head gradients.

Objective of client e:   L_e + lambda_e (a ||g_e - g||^2 / s_g + b ||H_e - H||^2 / s_H) in the Frobenius norm
                         ``full``    H_e = mean over examples of (diag p - p p^T) (x) z z^T, (C K, C K), divided by C D
                         ``blocks``  its C diagonal blocks, (K, K) each, one per class
                         ``sketch``  H_e v for N probes v of random signs: the mean of ||(H_e - H) v||^2 over probes is
                         ||H_e - H||^2 in expectation, with a standard deviation of at most sqrt(2 / N) times that
References (constants):  g = mean of g_e, H = mean of H_e (or of its blocks or products), in one exchange
Scale:                   ``"relative"``: s_g, s_H = the largest mean_e of the squares so far; lambda_e <= 1 limits the
                         penalty's gradient to the loss's, see :meth:`Step.limited`. ``"absolute"``: s = lambda = 1
Estimate:                ``"corrected"``, by default if relative, or ``"batch"``: see :mod:`fedhess.strategies.hgp`
Source:                  "CMA", arXiv 2506.07378, with a = 2000 and b = 10 in its released code for linear probing.

The source differentiates the means too. The deviations from the means add up to zero, so the mean over clients is the
same algorithm. Deviation: z has a bias column if the head has a bias, K = D + 1. Deviation: penalties are relative and
corrected by default, as in HGP and for the same reasons. The released code switches penalties on after 900 steps (here
``anneal_steps``, 0 by default). All domains of a round share the same probes, new in every round.

Neutral setting: a and b 0, or weight 0.

On the wire a round:     beside ERM's, up and down, C x K floats for g and for H (C K)^2, C K^2 or N C K: ResNet-18 for
                         PACS 51.6 MB, 7.4 MB, and 0.5 MB for N = 32. ``full`` is refused above 256 MiB.
                         And four numbers down.
Discloses:               each client's head gradient and head Hessian on one batch: second moments of its features by
                         class; a sketch, products with it. To the clients, if corrected, numbers of examples
                         (docs/partition.md).
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedhess.alignment import (
    Annealing,
    Ask,
    DomainStrategy,
    Estimate,
    PenaltyScale,
    PenaltySchedule,
    Reference,
    Scale,
    Step,
)
from fedhess.base.errors import UsageError
from fedhess.base.transfers import send
from fedhess.curvature import HeadBatch, head_gradient
from fedhess.curvature.closed_form import draw_signs

DEFAULTS = {"relative": {"a": 0.03, "b": 0.01}, "absolute": {"a": 2000.0, "b": 10.0}}
MOST_BYTES = 2**28  # of a full Hessian on the wire


def full(batch: HeadBatch) -> Tensor:
    """Return H / (C D), (C K, C K).

    Discloses: of one example all features, no label; of B, second moments of features weighted by class
    probabilities.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(1, 2))
    >>> full(batch)
    tensor([[0.1250, 0.2500],
            [0.2500, 0.5000]])
    """
    size = math.prod(batch.shape)
    if size**2 * batch.weight.element_size() > MOST_BYTES:
        raise UsageError(
            f"--strategy cma: form=full: the Hessian of a head of {batch.shape[0]} x {batch.shape[1]} parameters has "
            f"{size**2 * batch.weight.element_size() / 1e6:.0f} MB, more than {MOST_BYTES / 1e6:.0f}; give form=blocks "
            "or form=sketch"
        )
    p, inputs = batch.basics.probabilities, batch.basics.inputs
    between = (p * (1 - p)).unsqueeze(2) if batch.is_logistic else torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    whole = torch.einsum("bij,bk,bl->ikjl", between, inputs, inputs)
    return whole.reshape(size, size) / _divisor(batch)


def blocks(batch: HeadBatch) -> Tensor:
    """Return the diagonal blocks of H / (C D), (C, K, K).

    Discloses: of one example all features, no label; of B, second moments of features weighted by class
    probabilities.
    """
    p, inputs = batch.basics.probabilities, batch.basics.inputs
    return torch.einsum("bc,bk,bl->ckl", p * (1 - p), inputs, inputs) / _divisor(batch)


def sketch(batch: HeadBatch, /, *, seed: int, probes: int) -> Tensor:
    """Return H v / (C D sqrt(N)) for N probes v that depend on the seed alone, (N, C, K).

    Discloses: products with the Hessian: of one example all features, no label.
    """
    basics = batch.basics
    signs = draw_signs(probes, batch.shape, torch.Generator().manual_seed(seed))
    vectors = send(signs, basics.inputs.device).to(basics.inputs.dtype)
    products = basics.curve(basics.inputs @ vectors.mT).mT @ basics.inputs
    return products * (batch.size / _divisor(batch) / math.sqrt(probes))


def _divisor(batch: HeadBatch) -> int:
    """Return B C D: the mean over examples, and the released code's C D."""
    return batch.size * batch.weight.numel()


class CMA(DomainStrategy):
    """Alignment of whole Hessians.

    Args:
        a: Coefficient of the squared gradient distance; by default 0.03 relative, 2000 (as released) absolute.
        b: Coefficient of the squared Hessian distance; by default 0.01 relative, 10 (as released) absolute.
        form: How the Hessians are compared: ``"full"``, ``"blocks"`` or ``"sketch"``.
        probes: Number of a sketch's probes.
        scale: What the distances are divided by, see ``PenaltyScale``.
        estimate: ``"corrected"`` (by default if relative) or ``"batch"``, see ``PenaltyScale``.
        weight: Weight of the whole penalty from ``anneal_steps`` on (before: 0); see ``PenaltySchedule``.
        anneal_steps: Local steps before the weight applies.
        annealing: ``"rescale"`` or ``"reset"``; see ``PenaltySchedule``.
    """

    statistics = {"gradient": head_gradient, "full": full, "blocks": blocks, "sketch": sketch}

    def __init__(
        self,
        *,
        a: float | None = None,
        b: float | None = None,
        form: Literal["full", "blocks", "sketch"] = "sketch",
        probes: int = 32,
        scale: Scale = "relative",
        estimate: Estimate | None = None,
        weight: float = 1.0,
        anneal_steps: int = 0,
        annealing: Annealing = "rescale",
    ) -> None:
        self.a = DEFAULTS[scale]["a"] if a is None else a
        self.b = DEFAULTS[scale]["b"] if b is None else b
        if min(self.a, self.b) < 0 or probes < 1:
            raise ValueError(f"expected a, b >= 0 and probes >= 1, got {self.a}, {self.b} and {probes}")
        self.form, self.probes = form, probes
        self.scale, self.limited = PenaltyScale(scale, self.state, estimate), scale == "relative"
        self.least_batch = 2 if self.scale.corrected else 1
        self.estimate = self.scale.estimate
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing, before=0.0, coefficients=(self.a, self.b))
        self._coefficients = {name: value for name, value in (("gradient", self.a), (form, self.b)) if value > 0}

    def reference(self, ask: Ask) -> Reference:
        """Ask for g_e and H_e in the chosen form in one exchange, without statistics of coefficient zero."""
        if self.schedule.is_off:
            return {}
        given = {"seed": ask.seed, "probes": self.probes} if "sketch" in self._coefficients else {}
        return {"seed": torch.tensor(ask.seed)} | self.scale.references(ask.several(*self._coefficients, **given))

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return a ||g - g_ref||^2 / s_g + b ||H - H_ref||^2 / s_H, without terms of coefficient zero."""
        terms = []
        for name, coefficient in self._coefficients.items():
            given = {"seed": int(reference["seed"]), "probes": self.probes}
            distance = step.squared_distance(
                self.statistics[name], reference[name], share=self.scale.share(step, reference), **given
            )
            terms.append(coefficient * self.scale.scaled(distance, name, reference))
        return torch.stack(terms).sum() if terms else None
