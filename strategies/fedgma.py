"""FedGMA: shrink the mean update where the clients do not agree on its sign.

Objective of client e:   L_e
Server:                  theta + eta_s * m * sum p_e D_e with D_e = theta_e - theta, p_e the weights of the run; by
                         coordinate A = |sum p_e sign(D_e)|, m = 1 where A >= tau and A elsewhere
Source:                  Tenison et al., "Gradient Masked Averaging for Federated Learning", TMLR 2023 (arXiv
                         2201.11986), algorithm 1; tau from {0.1, 0.4, 0.9}, of which 0.4 is the default.

eta_s is the run's ``--server-lr``. Buffers (running statistics of batch norms) are averaged without a mask. In a round
of E equal clients A is a multiple of 1 / E: with three sources every tau in (1/3, 1] is the same mask.

Neutral setting: tau 0, where the mask is 1 and the run is ERM.

On the wire a round:     as ERM. The server holds a sum of signs beside the mean.
Discloses:               what ERM does: the mask needs each client's update, so a sum alone does not do.
"""

import torch
from torch import Tensor

from fedhess.alignment import ClientReply, DomainStrategy, LocalTraining, Reference, WeightedMean


class FedGMA(DomainStrategy):
    """Gradient-masked averaging.

    Args:
        tau: Agreement, in [0, 1], from which a coordinate takes the whole mean update.
    """

    def __init__(self, *, tau: float = 0.4) -> None:
        if not 0 <= tau <= 1:
            raise ValueError(f"expected 0 <= tau <= 1, got {tau}")
        self.tau = tau

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Average the updates and their signs, and mask the mean update by the mean signs."""
        del reference
        signs, names = WeightedMean(), phase.model.trained_names

        def add(reply: ClientReply) -> None:
            signs.add({name: reply.update[name].sign() for name in names}, reply.weight)

        mean = phase.mean_update(each=add)
        for name, sign in signs.result().items():
            agreement = sign.abs()
            mean[name] = mean[name] * torch.where(agreement >= self.tau, torch.ones_like(agreement), agreement)
        return mean
