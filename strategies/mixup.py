"""Mixup between domains: train on weighted sums of examples of two domains, for the labels of both.

Objective of client i:   sum over its domains, in a ring of random order, of the cross-entropy of the head on
                         x = l x_d + (1 - l) x_d' with the labels of d, weight l w_d, and with those of d', weight
                         (1 - l) w_d'; l ~ Beta(alpha, alpha), d' the domain after d, w_d the client's weight of d
Server:                  mean update
Source:                  Xu et al., AAAI 2020, and Yan et al. (arXiv 2001.00677), as DomainBed has it; alpha = 0.2.

It needs clients that hold several domains (``--partition lambda``). A client of a single domain trains without mixing.
If two domains' parts of the batch differ in size, the first examples of the larger are mixed. Deviation: one l a step,
where DomainBed draws one per pair. Each of the two sums of losses takes a pass. Mixed images are floats in [0, 1].

Neutral setting: alpha 0, where nothing is mixed and the run is ERM.

On the wire a round:     as ERM.
Discloses:               what ERM does.
"""

from collections.abc import Iterator

import numpy as np
import torch

from fedhess.alignment import DomainStrategy, Forward, LocalStep
from fedhess.base.errors import UsageError
from fedhess.settings.run_config import RunConfig


class Mixup(DomainStrategy):
    """Mixup of the domains that a client holds.

    Args:
        alpha: Both parameters of the Beta distribution of the weight.
    """

    def __init__(self, *, alpha: float = 0.2) -> None:
        if alpha < 0:
            raise ValueError(f"expected alpha >= 0, got {alpha}")
        self.alpha = alpha

    def check(self, config: RunConfig) -> None:
        """Check that some client holds two domains."""
        apart = config.heterogeneity == 0 and config.clients >= len(config.sources)
        if self.alpha > 0 and (config.partition != "lambda" or apart):
            raise UsageError(
                f"--strategy {config.strategy}: it mixes examples of two domains, and no client of this run holds two; "
                f"give --partition lambda --clients N with --heterogeneity above 0, or fewer clients than the "
                f"{len(config.sources)} source domains"
            )

    def compute_gradient(self, step: LocalStep) -> None:
        """Compute the gradient of the mixture's losses for the labels of both domains."""
        inputs, labels, sizes = step.batch
        if self.alpha == 0 or len(sizes) == 1:
            step.backward()
            return
        weight = np.random.RandomState(step.generator.initial_seed() % 2**32).beta(self.alpha, self.alpha)
        order = torch.randperm(len(sizes), generator=step.generator).tolist()
        after = dict(zip(order, [*order[1:], order[0]], strict=True))
        before = {second: first for first, second in after.items()}
        if not inputs.is_floating_point():
            inputs = inputs.to(next(step.model.parameters()).dtype) / 255
        parts, own = torch.split(inputs, list(sizes)), torch.split(labels, list(sizes))

        def passes() -> Iterator[tuple[float, Forward]]:
            for share, others in ((weight, after), (1 - weight, before)):
                kept = [min(sizes[d], sizes[others[d]]) for d in range(len(sizes))]
                mixed = [share * parts[d][:n] + (1 - share) * parts[others[d]][:n] for d, n in enumerate(kept)]
                yield share, step.run((torch.cat(mixed), torch.cat([own[d][:n] for d, n in enumerate(kept)]), kept))

        step.backward(passes())
