"""Hutchinson: align the domains' head gradients and Hessian diagonals.

Objective of client e:   L_e + lambda_e (alpha ||diag H_e - d||^2 / s_d + beta ||g_e - g||^2 / s_g)
References (constants):  g = mean of g_e;  d = mean of diag H_e, both asked for in one exchange
Scale:                   ``"relative"``: s_g, s_d = the largest mean_e ||g_e||^2 and mean_e ||diag H_e||^2 so far;
                         lambda_e <= 1 limits the penalty's gradient to the loss's, see :meth:`Step.limited`.
                         ``"absolute"``: s = lambda = 1, the published form
Estimate:                ``"corrected"``, by default if relative, or ``"batch"`` as published: see
                         :mod:`fedhess.strategies.hgp`. Both halves have the same probes, so that the table below holds
                         for it too
Source:                  Hemati, Zhang, Estiri, Chen, "Understanding Hessian Alignment for Domain Generalization",
                         ICCV 2023 (arXiv 2308.11778), section 4; defaults of the released code.

Deviation: penalties are relative and corrected by default, as in HGP and for the same reasons.
Deviation: the released code estimates the diagonal with random probes (100 to 300 double backwards); a linear head's
diagonal has a closed form, so the exact one is the default. ``probes=N`` gives Hutchinson's estimator with the same
probes for every domain of a round (common random numbers), new in every round. ``probes=N,independent=true`` is the
released estimator: new probes for each domain at each step, and separate ones for the mean. With off(H) the sum of the
squared entries of H off its diagonal and Hbar the mean Hessian, alpha multiplies in expectation:

    exact          ||diag H_e - d||^2
    probes=N       ||diag H_e - d||^2 + off(H_e - Hbar) / N
    independent    ||diag H_e - d||^2 + (off(H_e) + off(Hbar)) / N

So independent probes penalise the Hessian's own off-diagonal entries, even if the domains are identical.

On the wire a round:     beside ERM's, twice C x K floats up and down, K = D + 1: ResNet-18 for PACS, 7 x 513 floats =
                         14 kB each; and four numbers down.
Discloses:               each client's head gradient on one batch, and squared features weighed by class probabilities;
                         to the clients, if corrected, numbers of examples (docs/partition.md).
"""

from collections.abc import Mapping

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
from fedhess.base.seeds import derive_seed
from fedhess.curvature import HeadBatch, head_gradient, hessian_diagonal, hutchinson_diagonal

DEFAULTS = {"relative": {"alpha": 0.1, "beta": 0.03}, "absolute": {"alpha": 1e-3, "beta": 5e-3}}


def probed_diagonal(batch: HeadBatch, /, *, seed: int, probes: int) -> Tensor:
    """Estimate the Hessian diagonal, (C, K), from probes that depend on the seed alone.

    Discloses: an estimate of the Hessian's diagonal, and what that discloses.
    """
    generator = torch.Generator().manual_seed(seed)
    return hutchinson_diagonal(batch, probes=probes, generator=generator)


class Hutchinson(DomainStrategy):
    """Gradient and Hessian-diagonal alignment.

    Args:
        alpha: Coefficient of the squared distance of the diagonals; by default 0.1 relative, 1e-3 (released) absolute.
        beta: Coefficient of the squared gradient distance; by default 0.03 relative, 5e-3 (released) absolute.
        scale: What the distances are divided by, see ``PenaltyScale``.
        estimate: ``"corrected"`` (by default if relative) or ``"batch"``, see ``PenaltyScale``.
        probes: Number of Rademacher probes; 0 takes the exact diagonal.
        independent: Whether each domain, at each step, and the mean draw probes of their own (the released code).
        weight: Weight of the whole penalty from ``anneal_steps`` on (before: 1); see ``PenaltySchedule``.
        anneal_steps: Local steps before the weight applies.
        annealing: ``"rescale"`` as the paper's scripts, ``"reset"`` as DomainBed; see ``PenaltySchedule``.
    """

    statistics = {"gradient": head_gradient, "diagonal": hessian_diagonal, "probed": probed_diagonal}

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        scale: Scale = "relative",
        estimate: Estimate | None = None,
        probes: int = 0,
        independent: bool = False,
        weight: float = 1.0,
        anneal_steps: int = 0,
        annealing: Annealing = "rescale",
    ) -> None:
        self.alpha = DEFAULTS[scale]["alpha"] if alpha is None else alpha
        self.beta = DEFAULTS[scale]["beta"] if beta is None else beta
        if min(self.alpha, self.beta, probes) < 0:
            raise ValueError(f"expected alpha, beta, probes >= 0, got {self.alpha}, {self.beta}, {probes}")
        if independent and not probes:
            raise ValueError("independent=true: expected probes=N with N > 0 (the released code: 300), got probes=0")
        self.probes, self.independent = probes, independent
        self.scale, self.limited = PenaltyScale(scale, self.state, estimate), scale == "relative"
        self.least_batch = 2 if self.scale.corrected else 1
        self.estimate = self.scale.estimate
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing, coefficients=(self.alpha, self.beta))

    def reference(self, ask: Ask) -> Reference:
        """Ask for g_e and the diagonals in one exchange, without statistics of coefficient zero."""
        diagonal = "probed" if self.probes else "diagonal"
        names = [name for name, coefficient in (("gradient", self.beta), (diagonal, self.alpha)) if coefficient > 0]
        if self.schedule.is_off:
            return {}
        # A seed per round, although `references="previous"` has one for the run: no probes are shared.
        seed = derive_seed(ask.seed, "mean", ask.server_round) if self.independent else ask.seed
        given = {"seed": seed, "probes": self.probes} if diagonal in names and self.probes else {}
        answers = ask.several(*names, **given)
        return {"seed": torch.tensor(seed)} | self.scale.references({name: answers[name] for name in names})

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return alpha ||diag H - d||^2 / s_d + beta ||g - g_ref||^2 / s_g, without terms of coefficient zero."""
        terms: list[Tensor] = []
        share = self.scale.share(step, reference) if reference else None
        if self.alpha > 0 and self.probes:
            seed = step.generator.initial_seed() if self.independent else int(reference["seed"])
            distance = step.squared_distance(
                probed_diagonal, reference["probed"], share=share, seed=seed, probes=self.probes
            )
            terms.append(self.alpha * self.scale.scaled(distance, "probed", reference))
        elif self.alpha > 0:
            distance = step.squared_distance(hessian_diagonal, reference["diagonal"], share=share)
            terms.append(self.alpha * self.scale.scaled(distance, "diagonal", reference))
        if self.beta > 0:
            distance = step.distances(gradient=reference["gradient"], share=share).gradient_distance
            terms.append(self.beta * self.scale.scaled(distance, "gradient", reference))
        return sum(terms[1:], start=terms[0]) if terms else None
