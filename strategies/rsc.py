"""RSC: train on features while muting those that the true class depends on most.

Objective of client e:   cross-entropy of the head on z * m: m mutes, in each example, the features whose d logit_y / dz
                         is at or above its (1 - f) quantile over the features, but only in examples whose probability
                         of the true class falls by at least the (1 - b) quantile over the batch when they are muted
Server:                  mean update
Source:                  Huang et al., "Self-Challenging Improves Cross-Domain Generalization", ECCV 2020 (arXiv
                         2007.02454), as in DomainBed; f = b = 1/3.

The head is linear, so d logit_y / dz is its row of the true class. Deviation: the quantile over examples is taken over
each client's batch; DomainBed takes it over all domains together. The loss in the rows is that without muting.

Neutral setting: f or b 0, where nothing is muted and the run is ERM.

On the wire a round:     as ERM.
Discloses:               what ERM does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhess.alignment import DomainStrategy, Step
from fedhess.curvature import HeadBatch, mean_loss


class RSC(DomainStrategy):
    """Representation self-challenging.

    Args:
        f: Fraction of the features that is muted, in [0, 1).
        b: Fraction of the examples in which features are muted, in [0, 1).
    """

    def __init__(self, *, f: float = 1 / 3, b: float = 1 / 3) -> None:
        if not (0 <= f < 1 and 0 <= b < 1):
            raise ValueError(f"expected 0 <= f < 1 and 0 <= b < 1, got {f} and {b}")
        self.f, self.b = f, b

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of the muted features."""
        del reference
        if self.f == 0 or self.b == 0:
            return step.loss
        muted = step.features * muting(step.batch, f=self.f, b=self.b)
        return step.regularized(mean_loss(step.model.head(muted), step.labels))


@torch.no_grad()
def muting(batch: HeadBatch, *, f: float, b: float) -> Tensor:
    """Return 0 where a feature is muted and 1 elsewhere, (B, D).

    >>> batch = HeadBatch(torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    >>> muting(batch, f=0.5, b=0.5)
    tensor([[0., 1.],
            [1., 1.]])
    """
    labels, weight, bias = batch.labels, batch.weight, batch.bias
    slopes = (2 * labels - 1).unsqueeze(1) * weight if batch.is_logistic else weight[labels]
    kept = slopes < slopes.quantile(1 - f, dim=1, keepdim=True)
    before, after = (
        _of_label(torch.nn.functional.linear(z, weight, bias), labels) for z in (batch.features, batch.features * kept)
    )
    drops = before - after
    return (kept | (drops < drops.quantile(1 - b)).unsqueeze(1)).to(weight.dtype)


def _of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of each example's own class, (B,)."""
    if logits.shape[1] == 1:
        return (logits.squeeze(1) * (2 * labels - 1)).sigmoid()
    return logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
