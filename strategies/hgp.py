"""HGP: align the domains' head gradients and Hessian-gradient products.

Objective of client e:   L_e + lambda_e (alpha ||H_e[g_e] - h||^2 / s_h + beta ||g_e - g||^2 / s_g)
References (constants):  g = mean of g_e;  h = Hbar[g] (``hgp_of_mean``) or mean of H_e[g_e] (``mean_of_hgp``)
Scale:                   ``"relative"``: s_g = the largest mean_e ||g_e||^2 so far, s_h likewise for h's terms;
                         lambda_e <= 1 limits the penalty's gradient to the loss's, see :meth:`Step.limited`.
                         ``"absolute"``: s = lambda = 1, the published form
Estimate:                ``"batch"``: the distance of the batch's statistic, as published; in expectation larger than
                         the domain's by the statistic's variance over batches. ``"corrected"``, by default if relative:
                         with s = g or H[g], r its reference, and s_1 and s_2 of the even and the odd ones of the
                         batch's B examples, (1 - q) <s_1 - r, s_2 - r> + q ||s - r||^2, see
                         :meth:`Step.squared_distance` (DomainBed's IRM takes such a product). The variance is then
                         gone; of the product H_1[g_1] a bias of order 2 / B stays. The estimate can be negative:
                         ``"corrected"`` takes ``"relative"``, which limits it.
Source:                  Hemati, Zhang, Estiri, Chen, "Understanding Hessian Alignment for Domain Generalization",
                         ICCV 2023 (arXiv 2308.11778), section 4; defaults of the released code.

``g_e`` is the gradient and ``H_e`` the Hessian of the client's loss in the classifier head alone. The released code
computes the HGP of the mean loss, ``Hbar[gbar]``; it takes two exchanges (gbar must be known before H_e[gbar] can be
asked for). ``mean_of_hgp`` takes one. Their relative difference is O(1), so the choice is part of a result.

Deviation: penalties are relative by default, because ||H g||^2 grows with the sixth power of the features' length: with
the published coefficients training diverges on one model and aligns nothing on another. They are also corrected,
because shorter features lower a batch's variance: uncorrected, the penalty slows training on small batches.
``scale="absolute"`` is the released objective, by default with the released coefficients; published protocols use it.

With frozen embeddings (lite0-features) the penalty shortens the features and aligns nothing beyond that: divided by the
squared length the gradient distance equals ERM's (docs/method.md).

On the wire a round:     beside ERM's, C x K floats up for g_e and H_e[.], down for g (twice) and h, K = D + 1:
                         ResNet-18 for PACS, 7 x 513 floats = 14 kB each; and four numbers down.
Discloses:               each client's head gradient on one batch and a product with its head Hessian; to the clients,
                         if corrected, numbers of examples (docs/partition.md).
"""

from collections.abc import Mapping
from typing import Literal

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
from fedhess.curvature import head_gradient, head_hvp, hessian_gradient_product

DEFAULTS = {"relative": {"alpha": 0.003, "beta": 0.01}, "absolute": {"alpha": 1e-4, "beta": 5e-3}}


class HGP(DomainStrategy):
    """Gradient and Hessian-gradient-product alignment.

    Args:
        alpha: Coefficient of the squared HGP distance; by default 0.003 relative, 1e-4 (as released) absolute.
        beta: Coefficient of the squared gradient distance; by default 0.01 relative, 5e-3 (as released) absolute.
        scale: What the distances are divided by, see ``PenaltyScale``.
        estimate: ``"corrected"`` (by default if relative) or ``"batch"``, see ``PenaltyScale``.
        form: Which mean the HGP reference is: ``"hgp_of_mean"`` or ``"mean_of_hgp"``.
        weight: Weight of the whole penalty from ``anneal_steps`` on (before: 1); see ``PenaltySchedule``.
        anneal_steps: Local steps before the weight applies.
        annealing: ``"rescale"`` as the paper's scripts, ``"reset"`` as DomainBed; see ``PenaltySchedule``.
    """

    statistics = {"gradient": head_gradient, "hvp": head_hvp, "hgp": hessian_gradient_product}

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        scale: Scale = "relative",
        estimate: Estimate | None = None,
        form: Literal["hgp_of_mean", "mean_of_hgp"] = "hgp_of_mean",
        weight: float = 1.0,
        anneal_steps: int = 0,
        annealing: Annealing = "rescale",
    ) -> None:
        self.alpha = DEFAULTS[scale]["alpha"] if alpha is None else alpha
        self.beta = DEFAULTS[scale]["beta"] if beta is None else beta
        if min(self.alpha, self.beta) < 0:
            raise ValueError(f"expected alpha, beta >= 0, got {self.alpha}, {self.beta}")
        self.form = form
        self.scale, self.limited = PenaltyScale(scale, self.state, estimate), scale == "relative"
        self.least_batch = 2 if self.scale.corrected else 1
        self.estimate = self.scale.estimate
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing, coefficients=(self.alpha, self.beta))

    def reference(self, ask: Ask) -> Reference:
        """Ask for g_e, and for the HGP where its coefficient is not zero."""
        if self.schedule.is_off:
            return {}
        if self.alpha == 0:
            return self.scale.references({"gradient": ask("gradient")})
        if self.form == "mean_of_hgp":
            return self.scale.references(ask.several("gradient", "hgp"))
        gradients = ask("gradient")
        return self.scale.references({"gradient": gradients, "hgp": ask("hvp", vector=gradients.mean())})

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return alpha ||H[g] - h||^2 / s_h + beta ||g - g_ref||^2 / s_g, without terms whose coefficient is zero."""
        wanted = {"gradient": self.beta, "hgp": self.alpha}
        wanted = {name: coefficient for name, coefficient in wanted.items() if coefficient > 0}
        if not wanted:
            return None
        terms = step.distances(**{name: reference[name] for name in wanted}, share=self.scale.share(step, reference))
        parts = {"gradient": terms.gradient_distance, "hgp": terms.hgp_distance}
        first, *rest = (wanted[name] * self.scale.scaled(parts[name], name, reference) for name in wanted)
        return sum(rest, start=first)
