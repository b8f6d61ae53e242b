"""GA (FedDG-GA): weigh the domains so that aggregation costs each of them the same.

Objective of client e:   L_e; the mean update weighs domain e by a_e, at first 1 / E
Server:                  after round i = 0 ... R - 1, G_e = the measure on domain e of the averaged model minus that of
                         the model that domain e trained; a_e <- a_e + sigma (G_e / max |G|) d / E with
                         d = s - (i - 1) s / R, then clipped to [0, 1] and normalised; sigma = -1 for accuracy, 1 for
                         loss. Where all G are 0, a stays
Source:                  Zhang et al., "Federated Domain Generalization with Generalization Adjustment", CVPR 2023, and
                         its released code, where E is fixed to 3; s = 0.2, accuracy.

Models are measured on the sources' held-out examples, so selection by source validation uses examples that the weights
have followed, as in the released protocol. Without ``holdout`` they are measured on the training examples.

Deviation: a_e is a domain's weight, shared by its clients. A domain's G is the mean over its clients, weighted by
examples. Domains that miss a round, or the one after, keep their weight except for the normalisation. If only some of a
domain's clients take part (``clients_per_round``), its G compares different clients before and after, and includes
their differences. Deviation: with a server optimizer other than SGD with learning rate 1, the averaged model is the
model after that optimizer's step.

Neutral setting: s 0, where nobody evaluates and the run is ERM.

On the wire a round:     beside ERM's, one exchange without tensors, two numbers up in it and two with the update.
Discloses:               beside what ERM does, a loss and an accuracy of each client's own model and of the average.
"""

from typing import Literal

import torch
from torch import Tensor

from fedhess.alignment import Ask, ClientReply, DomainStrategy, LocalTraining, PerDomain, Reference, WeightedMean


class GA(DomainStrategy):
    """Generalization adjustment of the domains' weights.

    Args:
        s: Initial step size of the weights, in [0, 0.5]; it falls to about 0 over the rounds.
        measure: ``"accuracy"`` or ``"loss"``.
    """

    bound_to_rounds = True

    def __init__(self, *, s: float = 0.2, measure: Literal["accuracy", "loss"] = "accuracy") -> None:
        if not 0 <= s <= 0.5:
            raise ValueError(f"expected 0 <= s <= 0.5, got {s}")
        self.s, self.measure = s, measure
        self._after: PerDomain | None = None

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask for each domain's measure of the last round's averaged model; clients need no reference."""
        has_trained = any(key.startswith("before/") for key in self.state)
        self._after = ask.held_out()[self.measure] if has_trained else None
        return {}

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Update the weights by the last round's gaps, and average the updates with them."""
        del reference
        if self.s == 0:
            return phase.mean_update()
        weights = self._moved({d: float(self.state.get(f"weight/{d}", 1)) for d in phase.config.sources}, phase)
        before: dict[str, WeightedMean] = {}

        def keep(reply: ClientReply) -> None:
            for domain, measured in reply.held_out.items():
                value = torch.tensor(measured[self.measure], dtype=torch.float64)
                before.setdefault(domain, WeightedMean()).add({"": value}, reply.examples[domain])

        mean = phase.mean_update(weights, each=keep, held_out=True)
        self.load_state_dict({f"weight/{d}": torch.tensor(w, dtype=torch.float64) for d, w in weights.items()})
        self.state.update({f"before/{domain}": value.result()[""] for domain, value in before.items()})
        return mean

    def _moved(self, old: dict[str, float], phase: LocalTraining) -> dict[str, float]:
        """Return the weights of this round, which add up to 1; those of a domain without a gap stay."""
        before = {domain: self.state[f"before/{domain}"] for domain in old if f"before/{domain}" in self.state}
        gaps = {d: float(after - before[d]) for d, after in (self._after or {}).items() if d in before}
        largest = max(map(abs, gaps.values()), default=0.0)
        new = {domain: weight / sum(old.values()) for domain, weight in old.items()}
        if largest == 0:
            return new
        step = (
            self.s - (phase.server_round - 3) * self.s / phase.config.rounds
        )  # the last round's number from 0, less 1
        sign = -1 if self.measure == "accuracy" else 1
        for domain, gap in gaps.items():
            moved = new[domain] + sign * gap / largest * step / len(new)
            new[domain] = min(max(moved, 0.0), 1.0)
        return {domain: weight / sum(new.values()) for domain, weight in new.items()}
