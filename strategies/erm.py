"""Empirical risk minimisation: each client minimises its own loss. Federated, this is FedAvg.

Objective of client e:   L_e
Source:                  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
                         AISTATS 2017 (arXiv 1602.05629), with the weighting of the run (equal per domain by default).
On the wire a round:     the model down and the update up, once each (ResNet-18 for PACS: 44.7 MB each way a client).
Discloses:               the update of the whole model, as every federated method does.
"""

from fedhess.alignment import DomainStrategy


class ERM(DomainStrategy):
    """The baseline: no statistic, no reference, no penalty. Every other method at coefficient zero is this one."""
