"""FedAdam: Flower's own strategy, by its name.

Objective of client e:   L_e
Server:                  Adam along the mean update, as ``flwr.serverapp.strategy.FedAdam``
Source:                  Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (arXiv 2003.00295), algorithm 2.

``--strategy erm --server-optimizer Adam`` is torch's Adam on the same pseudo-gradient; the two differ in the bias
correction and in where tau enters.

On the wire a round:     as ERM; clients answer with weights instead of updates.
Discloses:               what ERM does.
"""

from flwr.serverapp.strategy import FedAdam as FlowerFedAdam


class FedAdam(FlowerFedAdam):
    """Flower's FedAdam with its own defaults (eta 0.1, eta_l 0.1, beta_1 0.9, beta_2 0.99, tau 1e-3)."""
