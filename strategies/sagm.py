"""SAGM: descend the loss and its worst value nearby at once, matching their gradients.

Objective of client e:   (L_e(theta) + L_e(theta + eps)) / 2, eps = (rho / ||g|| - alpha) g held constant, g the
                         gradient at theta
Server:                  mean update
Source:                  Wang et al., "Sharpness-Aware Gradient Matching for Domain Generalization", CVPR 2023 (arXiv
                         2303.10353) and its released code; rho 0.05, alpha 0.001.

The method is centralised; here each client applies it to its own loss. With one local step a round is centralised SAGM
with a separate eps for each domain. Running statistics of batch norms are those of the passes at theta.

Neutral setting: rho and alpha 0, where one pass is made and the run is ERM.

On the wire a round:     as ERM; a client computes two gradients a step.
Discloses:               what ERM does.
"""

import torch

from fedhess.alignment import DomainStrategy, LocalStep


class SAGM(DomainStrategy):
    """Sharpness-aware gradient matching.

    Args:
        rho: Distance to the worst point.
        alpha: Multiple of the gradient that is subtracted from the perturbation.
    """

    def __init__(self, *, rho: float = 0.05, alpha: float = 0.001) -> None:
        if min(rho, alpha) < 0:
            raise ValueError(f"expected rho, alpha >= 0, got {rho}, {alpha}")
        self.rho, self.alpha = rho, alpha

    def compute_gradient(self, step: LocalStep) -> None:
        """Compute the mean of the gradients here and at the worst point."""
        step.backward()
        if self.rho == self.alpha == 0:
            return
        gradient = step.take_gradient()
        length = torch.stack([value.norm() for value in gradient.values()]).norm() + 1e-12
        with step.moved({name: (self.rho / length - self.alpha) * value for name, value in gradient.items()}):
            step.backward()
        worst = step.take_gradient()
        for name, value in gradient.items():
            step.trained[name].grad = (value + worst[name]) / 2
