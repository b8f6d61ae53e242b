"""GroupDRO and AFL: minimise the worst domain's risk by weights that follow the losses.

Objective of client e:   L_e; the mean update weighs domain e by q_e
Server:                  ``exponential``  q_e <- q_e exp(eta L_e), normalised (GroupDRO)
                         ``projection``   q <- projection of q + eta L onto the simplex (AFL)
Statistics:              the loss of each domain, one exchange; a domain without a client in the round has loss 0
Source:                  Sagawa et al., "Distributionally Robust Neural Networks", ICLR 2020 (arXiv 1911.08731),
                         algorithm 1, eta as in DomainBed; Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML
                         2019 (arXiv 1902.00146), algorithm 1.

Deviation: AFL weighs a round with the q that the round's own losses have updated, as GroupDRO does; Mohri et al. step
the model with the old q (their lambda).

Neutral setting: eta 0, where q stays uniform and the run is ERM.

On the wire a round:     beside ERM's, one number up.
Discloses:               each client's loss on one batch.
"""

from typing import Literal

import torch
from torch import Tensor

from fedhess.alignment import Ask, DomainStrategy, LocalTraining, Reference, head_loss


class GroupDRO(DomainStrategy):
    """Adversarial domain weights.

    Args:
        eta: Step of the weights (DomainBed: 0.01).
        form: ``"exponential"`` for GroupDRO, ``"projection"`` for AFL.
    """

    statistics = {"loss": head_loss}

    def __init__(self, *, eta: float = 0.01, form: Literal["exponential", "projection"] = "exponential") -> None:
        if eta < 0:
            raise ValueError(f"expected eta >= 0, got {eta}")
        self.eta, self.form = eta, form

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for the losses and update the weights of all domains, which share a sum of 1."""
        if self.eta == 0:
            return {}
        losses = ask("loss")
        uniform = torch.tensor(1.0 / len(ask.domains), dtype=torch.float64)
        old = torch.stack([self.state.get(domain, uniform) for domain in ask.domains])
        zero = torch.zeros((), dtype=torch.float64)
        loss = torch.stack([losses[domain].double() if domain in losses else zero for domain in ask.domains])
        if self.form == "exponential":
            new = torch.softmax(old.log() + self.eta * loss, 0)
        else:
            new = project_to_simplex(old + self.eta * loss)
        self.state.update(zip(ask.domains, new, strict=True))
        return {}

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Weigh the clients' updates by q; with eta 0 by the run's own weights."""
        del reference
        return phase.mean_update({domain: float(weight) for domain, weight in self.state.items()} or None)


def project_to_simplex(point: Tensor) -> Tensor:
    """Return the nearest point of the probability simplex in the Euclidean norm, (E,).

    Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008, figure 1.

    >>> project_to_simplex(torch.tensor([0.8, 0.6, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """
    ordered = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype)
    shifts = (ordered.cumsum(0) - 1) / counts
    last = int((ordered > shifts).nonzero().max())
    return (point - shifts[last]).clamp(min=0)
