"""What a strategy is made of: one class with a server half and a client half.

Derive from :class:`DomainStrategy`. Its ``reference`` asks the source clients for statistics through :class:`Ask` and
gets a :class:`PerDomain` for each; its ``penalty`` sees each local step of a client as a :class:`Step`, its
``compute_gradient`` as a :class:`LocalStep`; its ``local_training`` directs the clients through :class:`LocalTraining`;
its ``state`` goes into checkpoints.
"""

from fedhess.alignment.means import PerDomain, WeightedMean
from fedhess.alignment.statistics import Statistic, head_loss
from fedhess.alignment.step import Forward, LocalStep, NetworkStatistic, Step, run_forward
from fedhess.alignment.strategy import (
    Annealing,
    Ask,
    ClientReply,
    ClientUpdate,
    DomainStrategy,
    Estimate,
    LocalTraining,
    PenaltyScale,
    PenaltySchedule,
    Reference,
    Scale,
)

__all__ = [
    "Annealing",
    "Ask",
    "ClientReply",
    "ClientUpdate",
    "DomainStrategy",
    "Estimate",
    "Forward",
    "LocalStep",
    "LocalTraining",
    "NetworkStatistic",
    "PenaltyScale",
    "PenaltySchedule",
    "PerDomain",
    "Reference",
    "Scale",
    "Statistic",
    "Step",
    "WeightedMean",
    "head_loss",
    "run_forward",
]
