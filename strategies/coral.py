"""CORAL: align the domains' feature means and covariances.

Objective of client e:   L_e + gamma * 2E/(E-1) * d_e,  d_e = ||m_e - m||^2 / D + ||C_e - C||^2 / D^2
References:              m, C = means over the E domains of the feature mean m_e, (D,), and covariance C_e, (D, D)
Source:                  Sun and Saenko, "Deep CORAL", ECCV workshops 2016 (arXiv 1607.01719), in the form of DomainBed:
                         the mean over pairs of domains of ||m_a - m_b||^2 / D + ||C_a - C_b||^2 / D^2, covariances
                         divided by B - 1; default gamma 1.

The sum over pairs of squared distances is E times the sum of squared distances to the mean, and the deviations add up
to zero, so that the mean over the clients is the centralised objective exactly.

On the wire a round:     beside ERM's, D + D^2 floats up and down: ResNet-18, 1.05 MB each.
Discloses:               each client's feature mean and covariance on one batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhess.alignment import Ask, DomainStrategy, Step
from fedhess.curvature import HeadBatch


def feature_mean(batch: HeadBatch) -> Tensor:
    """Return the mean of the features, (D,).

    Discloses: of one example all features; of B their mean.
    """
    return batch.features.mean(0)


def feature_covariance(batch: HeadBatch) -> Tensor:
    """Return the covariance of the features, (D, D), divided by B - 1; zero for a single example.

    Discloses: of one example nothing; of B, second moments of the features.
    """
    centred = batch.features - batch.features.mean(0)
    return centred.T @ centred / max(len(centred) - 1, 1)


class CORAL(DomainStrategy):
    """Correlation alignment.

    Args:
        gamma: Coefficient of the mean over pairs of domains (DomainBed: 1).
    """

    statistics = {"mean": feature_mean, "covariance": feature_covariance}

    def __init__(self, *, gamma: float = 1.0) -> None:
        if gamma < 0:
            raise ValueError(f"expected gamma >= 0, got {gamma}")
        self.gamma = gamma

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for means and covariances in one exchange."""
        if self.gamma == 0:
            return {}
        answers = ask.several("mean", "covariance")
        count = torch.tensor(len(answers["mean"]))
        return {"domains": count} | {name: answers[name].mean() for name in ("mean", "covariance")}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return gamma * 2E/(E-1) * d_e."""
        count = int(reference["domains"]) if reference else 0
        if count < 2:
            return None  # a single domain left by the quorum has no pair
        mean_gap = step.statistic(feature_mean) - reference["mean"]
        covariance_gap = step.statistic(feature_covariance) - reference["covariance"]
        distance = mean_gap.square().mean() + covariance_gap.square().mean()
        return self.gamma * 2 * count / (count - 1) * distance
