"""Fish: the domains train one after the other, and the model moves part of the way to the point that they reach.

Relay:                   theta_0 = theta; domain e takes its local steps from theta_{e-1} and leaves theta_e
Server:                  theta + eps (theta_E - theta): the step of SGD with learning rate 1, which the run must have
Source:                  Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022 (arXiv 2104.09937),
                         algorithm 1; domains in a fixed order and eps 0.5 as in DomainBed, the paper's random order
                         with ``shuffle``.

The inner optimizer is the clients' SGD. With momentum, its state travels along the relay and from round to round, as in
DomainBed's Fish. Training the domains in turn raises the inner product of their gradients to first order, without any
statistic.

The clients of one domain train at once, and their mean, weighted by examples, is passed on. The relay skips a domain
that has no client in the round.

Neutral setting: eps 1 with one source domain is local training, bit for bit, without momentum (which ERM's clients
reset each round). eps 0 is refused: nothing would move.

On the wire a round:     as ERM, but one domain after the other; with momentum its state too, up and down.
Discloses:               what ERM does, to the server.
"""

import torch
from torch import Tensor

from fedhess.alignment import DomainStrategy, LocalTraining, Reference
from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_generator
from fedhess.settings.run_config import RunConfig


class Fish(DomainStrategy):
    """Gradient matching by a relay.

    Args:
        eps: Fraction of the way that the model moves (DomainBed: 0.5).
        shuffle: Whether each round draws its own order of the domains.
    """

    def __init__(self, *, eps: float = 0.5, shuffle: bool = False) -> None:
        if not 0 < eps <= 1:
            raise ValueError(f"expected 0 < eps <= 1, got {eps}")
        self.eps, self.shuffle = eps, shuffle

    def check(self, config: RunConfig) -> None:
        """Check both optimizers.

        An adaptive server optimizer would normalise the step's length, so eps would have no effect. The clients' Adam
        would lose its state at each domain; DomainBed's keeps it along the relay and from round to round.
        """
        if config.client_optimizer != "SGD":
            raise UsageError(
                f"--strategy fish: its relay carries the state of SGD from domain to domain, that of "
                f"{config.client_optimizer} would be lost; give --client-optimizer SGD, with --momentum if you like"
            )
        changes = config.server_rate.words
        if (config.server_optimizer, config.server_lr) != ("SGD", 1.0) or config.server_optimizer_args or changes:
            raise UsageError(
                f"--strategy fish: its server takes theta + eps (theta_relay - theta), which is --server-optimizer SGD "
                f"--server-lr 1; got {config.server_optimizer} with lr {config.server_lr:g}{changes}"
                f"{' and further arguments' if config.server_optimizer_args else ''}. Give these options, and an --lr "
                "for the steps of the relay"
            )

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Send the model along the relay and return eps times the update of the whole relay."""
        del reference
        start = phase.model.tensors
        position = {name: value.clone() for name, value in start.items()}
        for domain in self._order(phase):
            result = phase.train_domain(domain, position, momentum=self.state, name=f"relay-{domain}")
            if result is None:
                continue
            for name, update in result.update.items():
                whole = update if position[name].is_floating_point() else update.round()
                position[name] -= whole.to(position[name].dtype)
            self.load_state_dict({name: value.clone() for name, value in result.momentum.items()})
        return {name: self.eps * (start[name] - position[name]) for name in phase.model.update_names}

    def _order(self, phase: LocalTraining) -> list[str]:
        domains = phase.domains
        if not self.shuffle:
            return domains
        generator = seeded_generator(phase.config.seed, "relay", phase.server_round)
        return [domains[index] for index in torch.randperm(len(domains), generator=generator).tolist()]
