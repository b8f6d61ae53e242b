"""IGA: align the gradients of the whole network between domains.

Objective of client e:   L_e + lambda c ||grad L_e - G||^2 over all trained parameters; c = E domains with form
                         ``"sum"``, 1 with ``"mean"``
References:              G = mean of grad L_e, one exchange; with ``"sum"`` also the number E of domains that answered
Source:                  Koyama and Yamaguchi, "Out-of-Distribution Generalization with Maximal Invariant Predictor",
                         arXiv 2008.01883, as in DomainBed.

The mean over the clients is the centralised objective exactly: the deviations add up to zero. DomainBed adds the sum
of the squared distances over the domains to the mean of the losses: form ``"sum"``, coefficient 1000. The paper's
variance is the mean: form ``"mean"``. The penalty's gradient takes a double backward through the network.

On the wire a round:     beside ERM's, the network's parameters once more up and down: ResNet-18, 44.7 MB each.
Discloses:               each client's gradient of the whole network on one batch, from which examples may be rebuilt.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedhess.alignment import Ask, DomainStrategy, Forward, Step
from fedhess.base.errors import UsageError
from fedhess.settings.run_config import RunConfig


def network_gradient(forward: Forward) -> Tensor:
    """Return the gradient of the loss by all trained parameters, flat, (P,), and keep the graph.

    Discloses: the head's gradient, so of one example its label and all features; from the gradient of the whole
    network inputs may be rebuilt (Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019).
    """
    return flat_gradient(forward.batch.loss, list(forward.model.parameters()), create_graph=False)


def flat_gradient(loss: Tensor, parameters: list[torch.nn.Parameter], *, create_graph: bool) -> Tensor:
    """Differentiate a loss by the trained parameters, (P,); zero for parameters that it does not depend on."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, create_graph=create_graph, retain_graph=True, allow_unused=True)
    filled = (torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True))
    return torch.cat([gradient.flatten() for gradient in filled])


class IGA(DomainStrategy):
    """Inter-gradient alignment.

    Args:
        coefficient: lambda (DomainBed: 1000).
        form: Whether the squared distances are added up over the domains, as in DomainBed, or averaged.
    """

    network_statistics = {"network_gradient": network_gradient}

    def __init__(self, *, coefficient: float = 1000.0, form: Literal["sum", "mean"] = "sum") -> None:
        if coefficient < 0:
            raise ValueError(f"expected coefficient >= 0, got {coefficient}")
        self.coefficient, self.form = coefficient, form

    def check(self, config: RunConfig) -> None:
        """Check that the network is not compiled, since torch differentiates compiled code only once."""
        if config.compile and self.coefficient > 0:
            raise UsageError(
                f"--compile: not with strategy {config.strategy}, which differentiates gradients; leave it out"
            )

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for the gradients."""
        if self.coefficient == 0:
            return {}
        gradients = ask("network_gradient")
        count = {"domains": torch.tensor(len(gradients))} if self.form == "sum" else {}
        return {"gradient": gradients.mean()} | count

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return lambda c ||grad L - G||^2."""
        if self.coefficient == 0:
            return None
        own = flat_gradient(step.batch.loss, list(step.model.parameters()), create_graph=True)
        factor = self.coefficient * (int(reference["domains"]) if self.form == "sum" else 1)
        return factor * (own - reference["gradient"]).square().sum()
