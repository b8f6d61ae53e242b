"""MixStyle: give examples the channel statistics of others in the first layers of the network.

Objective of client e:   L_e of a network in which, behind each of the layers, with probability p a step, the maps x of
                         an example become s' (x - m) / s + m': m, s its mean and standard deviation by channel, and
                         m' = l m + (1 - l) m_j, s' = l s + (1 - l) s_j with j another example of the batch, by a random
                         permutation, and l ~ Beta(alpha, alpha) for each example; statistics are constants
Server:                  mean update
Source:                  Zhou et al., "Domain Generalization with MixStyle", ICLR 2021 (arXiv 2104.02008), and its
                         released code: p 0.5, alpha 0.1, behind the first two stages of a ResNet.

A client of one domain mixes styles within it, since a federation shares no examples. A client of several domains mixes
across all of them. References and evaluations use the plain network.

Neutral setting: p 0.

On the wire a round:     as ERM.
Discloses:               what ERM does.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedhess.alignment import DomainStrategy, LocalStep
from fedhess.base.errors import UsageError
from fedhess.base.transfers import send
from fedhess.settings.run_config import RunConfig

GUARD = 1e-6  # added to variances


class MixStyle(DomainStrategy):
    """Mixing of feature statistics.

    Args:
        p: Probability that a layer mixes in a step.
        alpha: Both parameters of the Beta distribution of the weights.
        layers: Suffixes of the names of the modules whose outputs, (B, C, H, W), are mixed, joined by plus signs.
    """

    def __init__(self, *, p: float = 0.5, alpha: float = 0.1, layers: str = "layer1+layer2") -> None:
        if not (0 <= p <= 1 and alpha > 0):
            raise ValueError(f"expected 0 <= p <= 1 and alpha > 0, got {p} and {alpha}")
        self.p, self.alpha, self.layers = p, alpha, layers

    def check(self, config: RunConfig) -> None:
        """Check that the network is not compiled: a network compiled without hooks never runs them."""
        if config.compile and self.p > 0:
            raise UsageError(f"--compile: not with strategy {config.strategy}, which mixes by hooks; leave it out")

    def check_model(self, model: nn.Module) -> None:
        """Check that the layers are there."""
        if self.p > 0:
            self._modules(model)

    def compute_gradient(self, step: LocalStep) -> None:
        """Compute the gradient of the network with mixing."""
        if self.p == 0:
            step.backward()
            return
        random = np.random.RandomState(step.generator.initial_seed() % 2**32)

        def mix(module: nn.Module, args: Any, maps: Tensor) -> Tensor | None:
            del module, args
            if random.random_sample() >= self.p:
                return None
            if maps.dim() != 4:
                raise UsageError(
                    f"--strategy mixstyle: layers={self.layers}: expected modules that return maps (B, C, H, W), got "
                    f"shape {tuple(maps.shape)}"
                )
            weights = torch.from_numpy(random.beta(self.alpha, self.alpha, len(maps))).view(-1, 1, 1, 1)
            others = torch.from_numpy(random.permutation(len(maps)))
            return mixed(maps, send(weights.to(maps.dtype), maps.device), send(others, maps.device))

        hooks = [module.register_forward_hook(mix) for module in self._modules(step.model)]
        try:
            step.backward([(1.0, step.run())])
        finally:
            for hook in hooks:
                hook.remove()

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        found = []
        named = dict(model.named_modules())
        for wanted in self.layers.split("+"):
            own = [module for name, module in named.items() if f".{name}".endswith(f".{wanted}")]
            if len(own) != 1:
                listed = ", ".join([name for name in named if name.count(".") in (1, 2)][:20])
                raise UsageError(
                    f"--strategy mixstyle: layers={self.layers}: expected one module of the model whose name ends with "
                    f"{wanted!r}, got {len(own)}; its modules: {listed}"
                )
            found += own
        return found


def mixed(maps: Tensor, weights: Tensor, others: Tensor) -> Tensor:
    """Mix each example's statistics with another's.

    Args:
        maps: (B, C, H, W).
        weights: Weights of each example's own statistics, (B, 1, 1, 1).
        others: Index of the example that each is mixed with, (B,).

    >>> maps = torch.tensor([[[[1.0, 3.0]]], [[[10.0, 30.0]]]])
    >>> mixed(maps, torch.zeros(2, 1, 1, 1), torch.tensor([1, 0])).flatten()
    tensor([10.0000, 30.0000,  1.0000,  3.0000])
    """
    mean = maps.mean((2, 3), keepdim=True).detach()
    deviation = (maps.var((2, 3), keepdim=True) + GUARD).sqrt().detach()
    new_mean = weights * mean + (1 - weights) * mean[others]
    new_deviation = weights * deviation + (1 - weights) * deviation[others]
    return (maps - mean) / deviation * new_deviation + new_mean
