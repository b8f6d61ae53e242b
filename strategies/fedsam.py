"""FedSAM and FedASAM: each local step goes along the gradient at the worst point nearby.

Objective of client e:   max over ||eps / T|| <= rho of L_e(theta + eps), to first order: a step goes along the gradient
                         at theta + rho T^2 g / ||T g||, g the gradient at theta. ``sam``: T = 1; ``asam``: T = |theta|
                         + eta for each coordinate of weights, 1 for biases
Server:                  mean update
Source:                  Caldarola, Caputo, Ciccone, "Improving Generalization in Federated Learning by Seeking Flat
                         Minima", ECCV 2022 (arXiv 2203.11834); rho 0.1, for ``asam`` 0.7 and eta 0.2. Foret et al.,
                         ICLR 2021 (SAM); Kwon et al., ICML 2021 (ASAM).

The averaging that the paper adds on the server is ``--average swa --average-args start=0.75,every=10``. Weight decay
is the optimizer's, not part of g. Running statistics of batch norms are those of the passes at theta.

Neutral setting: rho 0, where one pass is made and the run is ERM.

On the wire a round:     as ERM; a client computes two gradients a step.
Discloses:               what ERM does.
"""

from typing import Literal

import torch
from torch import Tensor

from fedhess.alignment import DomainStrategy, LocalStep

DEFAULTS = {"sam": 0.1, "asam": 0.7}


class FedSAM(DomainStrategy):
    """Sharpness-aware local steps.

    Args:
        rho: Distance to the worst point; by default 0.1, for ``asam`` 0.7.
        form: Measure of the distance: ``"sam"``, or ``"asam"`` in units of the parameters.
        eta: Added to the parameters' magnitudes with ``asam``.
    """

    def __init__(self, *, rho: float | None = None, form: Literal["sam", "asam"] = "sam", eta: float = 0.2) -> None:
        self.rho = DEFAULTS[form] if rho is None else rho
        if min(self.rho, eta) < 0:
            raise ValueError(f"expected rho, eta >= 0, got {self.rho}, {eta}")
        self.form, self.eta = form, eta

    def compute_gradient(self, step: LocalStep) -> None:
        """Compute the gradient at the worst point."""
        step.backward()
        if self.rho == 0:
            return
        gradient, trained = step.take_gradient(), step.trained
        if self.form == "asam":
            scale = {name: self._scale(name, trained[name].detach()) for name in gradient}
            gradient = {name: scale[name] * value for name, value in gradient.items()}
        length = torch.stack([value.norm() for value in gradient.values()]).norm() + 1e-12
        move = {name: self.rho / length * value for name, value in gradient.items()}
        if self.form == "asam":
            move = {name: scale[name] * value for name, value in move.items()}
        with step.moved(move):
            step.backward()

    def _scale(self, name: str, parameter: Tensor) -> Tensor:
        """Return T of a parameter: as in the released code, 1 unless its name contains ``weight``."""
        return parameter.abs() + self.eta if "weight" in name else torch.ones_like(parameter)
