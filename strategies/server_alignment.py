"""Server-side alignment: clients train plain ERM; the server moves the averaged head to where the gradients agree.

Objective of client e:   L_e
Server:                  mean update + step * grad A in the head, A = (1/E) sum ||g_e - gbar||^2, the variance of the
                         domains' head gradients, whose gradient in the head is (2/E) sum H_e[g_e - gbar]
Statistics:              g_e in one exchange, H_e[g_e - gbar] in a second; a client that answers the first alone counts
                         in gbar and nowhere else
Source:                  the gradient-matching term of Hemati et al. (arXiv 2308.11778, section 4), differentiated: the
                         sum over e of (g_e - gbar)^T H_e with the deviations adding up to zero.

The gradient is taken at the model that the round began from. The server optimizer steps along the sum, so with SGD and
learning rate 1 the head is moved by ``-step * grad A`` after averaging.

On the wire a round:     beside ERM's, twice C x K floats up and once down: ResNet-18 for PACS, 29 and 14 kB.
Discloses:               each client's head gradient on one batch and a product with its head Hessian.
"""

from torch import Tensor

from fedhess.alignment import Ask, DomainStrategy, LocalTraining, Reference
from fedhess.curvature import HeadBatch, head_gradient, head_hvp


def pull(batch: HeadBatch, *, mean: Tensor) -> Tensor:
    """Return H[g - mean], (C, K): half the gradient of ||g - mean||^2 in the head, the mean a constant.

    Discloses: what a product with the Hessian discloses: of one example all features.
    """
    return head_hvp(batch, head_gradient(batch) - mean)


class ServerAlignment(DomainStrategy):
    """Head step along the gradient of the cross-domain gradient variance, taken by the server.

    Args:
        step: Length of the step along that gradient.
    """

    statistics = {"gradient": head_gradient, "pull": pull}

    def __init__(self, *, step: float = 0.01) -> None:
        if step < 0:
            raise ValueError(f"expected step >= 0, got {step}")
        self.step = step
        self._direction: Tensor | None = None

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for the statistics and keep the direction for :meth:`local_training`; clients need no reference."""
        self._direction = None
        if self.step > 0:
            self._direction = 2 * ask("pull", mean=ask("gradient").mean()).mean()
        return {}

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Have the clients train ERM and add the step in the head to their mean update."""
        del reference
        mean_update = phase.mean_update()
        if self._direction is None:
            return mean_update
        move = self.step * self._direction
        weight, bias = mean_update["head.weight"], mean_update.get("head.bias")
        moved = {"head.weight": weight + move[:, : weight.shape[1]]}
        if bias is not None:
            moved["head.bias"] = bias + move[:, -1]
        return mean_update | moved
