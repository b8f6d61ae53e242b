"""SCAFFOLD: correct each client's steps by the difference between its own past mean gradient and everyone's.

Objective of client i:   L_i + <c - c_i, theta>: each step goes along its gradient - c_i + c
Server:                  mean update; c_i <- c_i - c + (theta - theta_i) / (K eta), for K steps of rate eta: the mean
                         gradient of client i's steps; c = sum p_i c_i, p_i the weights of the run
Source:                  Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
                         2020 (arXiv 1910.06378), algorithm 1, option II.

Clients stay stateless: the server computes c_i from the update and sends c - c_i with the model. A client that has not
taken part yet has c_i = 0.

Deviation: c is the mean with the run's weights, not with 1 / N. The corrections of a round of all clients then cancel
in the mean, and ERM's objective is minimised however many clients a domain has.
Deviation: with ``--momentum m``, K is replaced by the sum of (1 - m^j) / (1 - m) over j = 1 ... K, the weights of the
gradients in the update (Wang et al., "Tackling the Objective Inconsistency Problem", NeurIPS 2020). c_i is the mean
with these weights.

Neutral setting: one client, whose c is its c_i: local training, bit for bit. No coefficient switches the method off.

On the wire a round:     as ERM, and a model more down: ResNet-18 for PACS, 89.4 MB down, 44.7 MB up a client. The
                         server holds one model per client, also in checkpoints.
Discloses:               what ERM does, to the server; to a client its difference to the mean gradient of all.
"""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from fedhess.alignment import ClientReply, DomainStrategy, LocalTraining, Reference, Step
from fedhess.base.errors import UsageError
from fedhess.settings.run_config import RunConfig


class Scaffold(DomainStrategy):
    """Control variates against the drift of clients."""

    def check(self, config: RunConfig) -> None:
        """Check that the clients use SGD, whose update reveals the mean gradient."""
        if config.client_optimizer != "SGD":
            raise UsageError(
                f"--strategy {config.strategy}: it reads a client's mean gradient from its update, which "
                f"{config.client_optimizer} does not show; give --client-optimizer SGD, with --momentum if you like"
            )

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor | None:
        """Return <c - c_i, theta - theta_global>, whose gradient is the correction."""
        terms = [
            (reference[f"control/{name}"] * (parameter - step.before[name])).sum()
            for name, parameter in step.trained.items()
            if f"control/{name}" in reference
        ]
        return torch.stack(terms).sum() if terms else None

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Send each client its correction, average the updates, and read the new c_i from them."""
        del reference
        config, names, shares = phase.config, phase.model.trained_names, phase.shares

        def own(label: str, name: str) -> Tensor:
            return self.state.get(f"{label}/{name}", torch.zeros_like(phase.model.tensors[name]))

        mean_control = {name: torch.zeros_like(phase.model.tensors[name]) for name in names}
        for (label, share), (name, control) in itertools.product(shares.items(), mean_control.items()):
            control.add_(own(label, name), alpha=share)

        def correction(label: str) -> dict[str, Tensor]:
            return {f"control/{name}": mean_control[name] - own(label, name) for name in names}

        fresh: dict[str, Tensor] = {}

        def keep(reply: ClientReply) -> None:
            m, gone = config.momentum, correction(reply.client)
            reach = sum((1 - m**j) / (1 - m) for j in range(1, reply.steps + 1))
            rate = reach * config.client_rate.at(phase.server_round)
            for name in names:
                fresh[f"{reply.client}/{name}"] = reply.update[name] / rate - gone[f"control/{name}"]

        mean = phase.mean_update(given=correction if self.state else None, each=keep)
        self.state.update(fresh)
        return mean
