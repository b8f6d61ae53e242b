"""HGP: align the domains' head gradients and Hessian-gradient products.

Objective of client e:   L_e + alpha ||H_e[g_e] - h||^2 + beta ||g_e - g||^2      (constants g, h: the references)
References:              g = mean of g_e;  h = Hbar[g] (``hgp_of_mean``) or mean of H_e[g_e] (``mean_of_hgp``)
Source:                  Hemati, Zhang, Estiri, Chen, "Understanding Hessian Alignment for Domain Generalization",
                         ICCV 2023 (arXiv 2308.11778), section 4; defaults of the released code.

``g_e`` is the gradient and ``H_e`` the Hessian of the client's loss in the classifier head alone. The released code
computes the HGP of the mean loss, ``Hbar[gbar]``; it takes two exchanges (gbar must be known before H_e[gbar] can be
asked for). ``mean_of_hgp`` takes one. The two differ by O(1) relatively, so the choice is part of a result.

On the wire a round:     beside ERM's, C x K floats up for g_e and H_e[.], down for g (twice) and h, K = D + 1:
                         ResNet-18 for PACS, 7 x 513 floats = 14 kB each.
Discloses:               each client's head gradient on one batch and a product with its head Hessian.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fedhess.curvature import head_gradient, head_hvp, hessian_gradient_product
from fedhess.exchange import Exchange
from fedhess.strategy import Annealing, DomainStrategy, PenaltySchedule
from fedhess.training import Step


class HGP(DomainStrategy):
    """Gradient and Hessian-gradient-product alignment.

    Args:
        alpha: Coefficient of the squared HGP distance (released default 1e-4).
        beta: Coefficient of the squared gradient distance (released default 5e-3).
        form: Which mean the HGP reference is: ``"hgp_of_mean"`` or ``"mean_of_hgp"``.
        weight: Weight of the whole penalty from ``anneal_steps`` on (before: 1); see ``PenaltySchedule``.
        anneal_steps: Local steps before the weight applies.
        annealing: ``"rescale"`` as the paper's scripts, ``"reset"`` as DomainBed; see ``PenaltySchedule``.

    Raises:
        ValueError: A coefficient is negative.
    """

    statistics = {"gradient": head_gradient, "hvp": head_hvp, "hgp": hessian_gradient_product}

    def __init__(
        self,
        *,
        alpha: float = 1e-4,
        beta: float = 5e-3,
        form: Literal["hgp_of_mean", "mean_of_hgp"] = "hgp_of_mean",
        weight: float = 1.0,
        anneal_steps: int = 0,
        annealing: Annealing = "rescale",
    ) -> None:
        if min(alpha, beta, weight, anneal_steps) < 0:
            raise ValueError(
                f"expected alpha, beta, weight, anneal_steps >= 0, got {(alpha, beta, weight, anneal_steps)}"
            )
        self.alpha, self.beta, self.form = alpha, beta, form
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing)

    def reference(self, ask: Exchange) -> dict[str, Tensor]:
        """Ask for g_e, and for the HGP where its coefficient is not zero."""
        if self.schedule.is_off or (self.alpha == 0 and self.beta == 0):
            return {}
        if self.alpha == 0:
            return {"gradient": ask("gradient").mean()}
        if self.form == "mean_of_hgp":
            answers = ask.several("gradient", "hgp")
            return {name: answers[name].mean() for name in ("gradient", "hgp")}
        gradient = ask("gradient").mean()
        return {"gradient": gradient, "hgp": ask("hvp", vector=gradient).mean()}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return alpha ||H[g] - h||^2 + beta ||g - g_ref||^2, without the terms whose coefficient is zero."""
        wanted = {"gradient": self.beta, "hgp": self.alpha}
        wanted = {name: coefficient for name, coefficient in wanted.items() if coefficient > 0}
        if not wanted:
            return None
        terms = step.distances(**{name: reference[name] for name in wanted})
        parts = {"gradient": terms.gradient_distance, "hgp": terms.hgp_distance}
        first, *rest = (coefficient * parts[name] for name, coefficient in wanted.items())
        return sum(rest, start=first)
