"""Fishr: align the domains' variances of per-example head gradients.

Objective of client e:   L_e + lambda c mean((v_e + q p_e - m)^2) over the C x K entries, q = ema / (1 - ema)
Annealing:               before step ``anneal_steps`` lambda is 0 with ``annealing`` "reset", as in DomainBed (the
                         averages are still updated), and 1 with "rescale", as in the ColoredMNIST script
References:              p_e = the domain's moving average of v before this round, m = mean of v_e + q p_e;
                         moving average: p <- ema p + (1 - ema) v_e, kept on the server, one per domain, 0 at first
Source:                  Rame, Dancette, Cord, "Fishr: Invariant Gradient Variances for Out-of-Distribution
                         Generalization", ICML 2022 (arXiv 2109.02934); moving averages divided by 1 - ema, squared
                         distances averaged over entries, and defaults as in DomainBed. The ColoredMNIST script sums
                         over entries and domains: there c = E C K.

``v_e`` is the variance of the per-example gradients of the head, centred, in closed form (no per-example backward).

On the wire a round:     beside ERM's, C x K floats up and twice that down: ResNet-18 for PACS, 14 and 29 kB.
Discloses:               each client's gradient variance on one batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhess.alignment import Annealing, Ask, DomainStrategy, PenaltySchedule, Reference, Step
from fedhess.curvature import gradient_variance


class Fishr(DomainStrategy):
    """Gradient-variance alignment.

    Args:
        weight: Coefficient lambda from ``anneal_steps`` on (DomainBed: 1000).
        anneal_steps: Local steps before the coefficient is lambda (DomainBed: 1500).
        ema: Share of the old variance in the moving average, in [0, 1) (DomainBed: 0.95).
        annealing: ``"reset"`` as DomainBed, ``"rescale"`` as the ColoredMNIST script; see ``PenaltySchedule``.
        coefficient: Factor c of the distance at every step, not part of what ``"rescale"`` divides by.
    """

    statistics = {"variance": gradient_variance}

    def __init__(
        self,
        *,
        weight: float = 1000.0,
        anneal_steps: int = 1500,
        ema: float = 0.95,
        annealing: Annealing = "reset",
        coefficient: float = 1.0,
    ) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"expected 0 <= ema < 1, got {ema}")
        if coefficient <= 0:
            raise ValueError(f"expected coefficient > 0, got {coefficient}; weight=0 switches the penalty off")
        before = 0.0 if annealing == "reset" else 1.0
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing, before)
        self.ema, self.coefficient = ema, coefficient

    def reference(self, ask: Ask) -> Reference:
        """Ask for the variances, update the averages, and send each client its own old one and the mean of the new."""
        if self.schedule.is_off:
            return {}
        variances = ask("variance")
        past = {}
        for domain, value in variances.items():
            before = self.state.get(domain, torch.zeros_like(value))
            past[domain] = self.ema / (1 - self.ema) * before
            self.state[domain] = self.ema * before + (1 - self.ema) * value
        return {"mean": variances.with_values({d: v + past[d] for d, v in variances.items()}).mean(), "past": past}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Return c times the mean squared distance of the corrected moving average to its mean over the domains."""
        gap = step.statistic(gradient_variance) + reference["past"] - reference["mean"]
        return self.coefficient * gap.square().mean()
