"""FedSR: a random representation of small norm that holds little information on an image beyond its class.

Objective of client e:   cross-entropy of the head on z ~ p(z|x) = N(mu, diag sigma^2), one z per example
                         + l2r mean ||z|| + cmi mean KL( N(C mu, diag (C sigma)^2) || N(m_y, diag r_y^2) )
                         mu = the network's features; sigma = softplus(S mu + s); m_y, r_y = softplus(.) of each class,
                         and C > 0, () are learned
Server:                  mean update, of S, s, m, r and C too
Source:                  Nguyen, Torr, Lim, "FedSR: A Simple and Effective Domain Generalization Method for Federated
                         Learning", NeurIPS 2022; released code: l2r 0.01 and cmi 0.001 for PACS, m = 0, r = softplus(1)
                         and C = 1 at first.

The divergence bounds the conditional mutual information of image and representation given the class. Noise is seeded
from (seed, domain, client, step).

Deviation: all clients share one m, r and C, averaged like the network, so that all pull to the same Gaussian of a
class; in the released code each client keeps its own throughout.
Deviation: mu is the vector that the head sees anyway, and S, s start at 0 (sigma = 0.69); in the released code a new
linear layer of 512 computes both. Any network with a linear head can be trained; its features, as in ERM, are mu.
Deviation: sigma is at least the type's epsilon, 1e-7 in float32. Adam at the learning rates of adapters drives it to 0
within a round, where the divergence is infinite.
Deviation: evaluations, exports and references take the mean, z = mu; the released code averages the probabilities of 20
samples. The loss in the rows is computed with the mean.

Neutral setting: sampled false, l2r and cmi 0. With sampled false and cmi 0 alone it is the paper's FedL2R.

On the wire a round:     beside ERM's D x D + D + 2 C D + 1 floats both ways: ResNet-18 for PACS, D = 512, 1.1 MB more.
Discloses:               an update as ERM does, which here has what is learned of each class.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fedhess.alignment import DomainStrategy, Step
from fedhess.base.transfers import send
from fedhess.curvature import mean_loss


class Gaussians(nn.Module):
    """Spread of p(z|x), and r(z|y) of each class."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.spread = nn.Linear(features, features)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)
        self.class_mean = nn.Parameter(torch.zeros(classes, features))
        self.class_spread = nn.Parameter(torch.ones(classes, features))
        self.scale = nn.Parameter(torch.ones(()))

    def divergence(self, mean: Tensor, spread: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over examples of KL(N(C mu, C sigma) || r(z|y)), ().

        >>> own = Gaussians(2, 3)
        >>> own.divergence(torch.zeros(4, 2), softplus(torch.ones(4, 2)), torch.tensor([0, 1, 2, 0])).item()
        0.0
        """
        mean, spread = self.scale * mean, (self.scale * spread).abs()
        towards, width = self.class_mean[labels], softplus(self.class_spread[labels])
        terms = (width / spread).log() + (spread.square() + (mean - towards).square()) / (2 * width.square()) - 0.5
        return terms.sum(1).mean()


class FedSR(DomainStrategy):
    """Simple representations.

    Args:
        l2r: Coefficient of the length of z.
        cmi: Coefficient of the divergence.
        sampled: Whether z is sampled; otherwise it is the mean.
    """

    def __init__(self, *, l2r: float = 0.01, cmi: float = 0.001, sampled: bool = True) -> None:
        if min(l2r, cmi) < 0:
            raise ValueError(f"expected l2r, cmi >= 0, got {l2r}, {cmi}")
        self.l2r, self.cmi, self.sampled = l2r, cmi, sampled

    def auxiliary(self, model: nn.Module) -> nn.Module | None:
        """Return the spread and the classes' Gaussians, if they are needed."""
        if not self.sampled and self.cmi == 0:
            return None
        head = model.get_submodule("head")
        assert isinstance(head, nn.Linear)
        return Gaussians(head.in_features, max(2, head.out_features))

    def objective(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a sample plus both regularisers."""
        del reference
        own, mean = step.model.auxiliary, step.features
        z, whole = mean, step.loss
        if isinstance(own, Gaussians):
            spread = softplus(own.spread(mean)).clamp_min(torch.finfo(mean.dtype).eps)
            if self.sampled:
                noise = torch.randn(mean.shape, generator=step.generator, dtype=mean.dtype)
                z = mean + spread * send(noise, mean.device)
                whole = step.regularized(mean_loss(step.model.head(z), step.labels))
            if self.cmi:
                whole = whole + self.cmi * own.divergence(mean, spread, step.labels)
        if self.l2r:
            whole = whole + self.l2r * z.norm(dim=1).mean()
        return whole
