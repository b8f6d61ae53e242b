"""FedOMG: step where the least favoured client's update gains most, near the mean update.

Objective of client e:   L_e
Server:                  theta + eta_g E sum (1/E + l u_e) g_e / (1 + k^2) over the E clients of the round, with
                         g_e = p_e (theta_e - theta), p_e the weights of the run. With M = G G^T divided by the squared
                         mean of sqrt(M_ee + 1e-4), c = k sqrt(mean(M) + 1e-4): u = softmax(v) minimises
                         u . rowmean(M) + c sqrt(u^T M u + 1e-4) over v, and l = c / (sqrt(u^T M u + 1e-4) + 1e-4)
Source:                  Nguyen et al., "Federated Domain Generalization with Data-free On-server Matching Gradient",
                         ICLR 2025, as released: the CAGrad of Liu et al. (NeurIPS 2021) on updates, v by 21
                         evaluations and 20 steps of SGD from 0 (rate 25, momentum 0.5), the best kept; k = 0.5.

eta_g is the run's ``--server-lr``. Deviation: the sum is multiplied by E, so that k = 0 is the mean update of ERM and
``--server-lr 1`` a step of its length; the released eta_g of 0.5 is ``--server-lr`` 0.5 / E here. Buffers are averaged.

Neutral setting: k 0.

On the wire a round:     as ERM. The server holds the updates of all clients of the round at once, where ERM holds one.
Discloses:               what ERM does: the products need each client's update, so a sum alone does not do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedhess.alignment import ClientReply, DomainStrategy, LocalTraining, Reference

GUARD = 1e-4  # the released code adds it under its roots


class FedOMG(DomainStrategy):
    """On-server gradient matching.

    Args:
        k: Distance of the step from the mean update, relative to its length, before the division by 1 + k^2.
    """

    def __init__(self, *, k: float = 0.5) -> None:
        if k < 0:
            raise ValueError(f"expected k >= 0, got {k}")
        self.k = k

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Keep the updates and weigh them by their inner products."""
        del reference
        if self.k == 0:
            return phase.mean_update()
        replies: list[ClientReply] = []
        mean, names = phase.mean_update(each=replies.append), phase.model.trained_names
        total = sum(reply.weight for reply in replies)
        shares = torch.tensor([reply.weight / total for reply in replies], dtype=torch.float64)
        products = torch.tensor([[_product(a, b, names) for b in replies] for a in replies], dtype=torch.float64)
        weights = shares * matching_weights(shares.outer(shares) * products, k=self.k)
        for name in names:
            parts = [float(weight) * reply.update[name] for weight, reply in zip(weights, replies, strict=True)]
            mean[name] = sum(parts[1:], start=parts[0])
        return mean


def _product(a: ClientReply, b: ClientReply, names: Sequence[str]) -> float:
    return sum(float(torch.dot(a.update[name].flatten(), b.update[name].flatten())) for name in names)


def matching_weights(products: Tensor, *, k: float) -> Tensor:
    """Return E (1/E + l u) / (1 + k^2), (E,), from the inner products of the updates, (E, E).

    Two updates that agree get equal weights; of two that conflict, the shorter gets more weight.

    >>> matching_weights(torch.tensor([[1.0, 0.2], [0.2, 1.0]]), k=0.5)
    tensor([1.1999, 1.1999])
    >>> matching_weights(torch.tensor([[1.0, -0.5], [-0.5, 0.5]]), k=0.5)
    tensor([0.8000, 1.2001])
    """
    matrix = products / (products.diag() + GUARD).sqrt().mean() ** 2
    radius = k * (matrix.mean() + GUARD).sqrt()
    v = torch.zeros(len(matrix), dtype=matrix.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([v], lr=25.0, momentum=0.5)
    lowest, best = float("inf"), v.detach()
    for _ in range(21):
        optimizer.zero_grad()
        u = v.softmax(0)
        value = u @ matrix.mean(1) + radius * (u @ matrix @ u + GUARD).sqrt()
        if value.item() < lowest:
            lowest, best = value.item(), v.detach().clone()
        torch.autograd.backward(value)
        optimizer.step()
    u = best.softmax(0)
    push = radius / ((u @ matrix @ u + GUARD).sqrt() + GUARD)
    return (1 + len(matrix) * push * u) / (1 + k**2)
