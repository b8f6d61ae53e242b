"""FedIIR: align the domains' head gradients with a moving average of their mean.

Objective of client e:   L_e + gamma ||g_e - r||^2
References:              r_t = ema * r_{t-1} + (1 - ema) * mean of g_e, kept on the server; r_1 = the mean of round 1
Source:                  Guo et al., "Out-of-Distribution Generalization of Federated Learning via Implicit
                         Invariant Relationships", ICML 2023; ema 0.95 and gamma 1e-3 (PACS) as in the released code.

Deviation: the first reference is the first mean, not a fraction of it, so that round 1 does not pull to zero.
Deviation: the mean is over one batch a client (``--statistics-batches``), with equal weights of the domains. The source
takes all batches of the sampled clients, weighted by examples. Its head on PACS is a small network, and its penalty
covers all layers of that network.

On the wire a round:     beside ERM's, C x K floats up and down, K = D + 1: ResNet-18 for PACS, 14 kB each.
Discloses:               each client's head gradient on one batch.
"""

from collections.abc import Mapping

from torch import Tensor

from fedhess.alignment import Ask, DomainStrategy, Step
from fedhess.curvature import head_gradient


class FedIIR(DomainStrategy):
    """Gradient alignment with a moving average.

    Args:
        gamma: Coefficient of the squared distance.
        ema: Share of the old reference in the new one, in [0, 1).
    """

    statistics = {"gradient": head_gradient}

    def __init__(self, *, gamma: float = 1e-3, ema: float = 0.95) -> None:
        if gamma < 0 or not 0 <= ema < 1:
            raise ValueError(f"expected gamma >= 0 and 0 <= ema < 1, got {gamma} and {ema}")
        self.gamma, self.ema = gamma, ema

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for g_e and move the average."""
        if self.gamma == 0:
            return {}
        average = ask("gradient").mean()
        if self.state:
            average = self.ema * self.state["average"] + (1 - self.ema) * average
        self.state["average"] = average
        return {"gradient": average}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return gamma ||g - r||^2."""
        if self.gamma == 0:
            return None
        return self.gamma * step.distances(gradient=reference["gradient"]).gradient_distance
