"""V-REx: make the risks of the domains equal by penalising their variance.

Objective of client e:   L_e + w c (L_e - Lbar)^2, w = ``weight`` from ``anneal_steps`` on (before: 1)
References:              Lbar = mean of L_e, one exchange
Source:                  Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation", ICML 2021 (arXiv
                         2003.00688): mean over domains of (L_e - Lbar)^2; defaults as in DomainBed. The ColoredMNIST
                         scripts penalise (L_1 - L_2)^2, which is c = 4 with two domains.

The mean over the clients is V-REx exactly, although Lbar is a constant here: the deviations add up to zero.

On the wire a round:     beside ERM's, one number up and one down.
Discloses:               each client's loss on one batch.
"""

from collections.abc import Mapping

from torch import Tensor

from fedhess.alignment import Annealing, Ask, DomainStrategy, PenaltySchedule, Step, head_loss


class VREx(DomainStrategy):
    """Risk extrapolation by the variance of risks.

    Args:
        weight: Coefficient of the variance from ``anneal_steps`` on (DomainBed: 10).
        anneal_steps: Local steps with coefficient 1 before (DomainBed: 500).
        annealing: ``"reset"`` as DomainBed, ``"rescale"`` as the paper's script; see ``PenaltySchedule``.
        coefficient: Factor c of the variance at every step, not part of what ``"rescale"`` divides by.
    """

    statistics = {"loss": head_loss}

    def __init__(
        self, *, weight: float = 10.0, anneal_steps: int = 500, annealing: Annealing = "reset", coefficient: float = 1.0
    ) -> None:
        if coefficient <= 0:
            raise ValueError(f"expected coefficient > 0, got {coefficient}; weight=0 switches the penalty off")
        self.schedule = PenaltySchedule(weight, anneal_steps, annealing)
        self.coefficient = coefficient

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for the losses."""
        return {} if self.schedule.is_off else {"loss": ask("loss").mean()}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Return c (L_e - Lbar)^2."""
        return self.coefficient * (step.statistic(head_loss) - reference["loss"]).square()
