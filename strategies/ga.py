"""GA (FedDG-GA): weigh the domains so that aggregation costs each of them the same.

Objective of client e:   L_e; the mean update weighs domain e by a_e, at first 1 / E
Server:                  after round i = 0 ... R - 1, G_e = what domain e measures of the averaged model less what it
                         measured of the model that it trained; a_e <- a_e + sigma (G_e / max |G|) d / E with
                         d = s - (i - 1) s / R, then clipped to [0, 1] and normalised; sigma = -1 for accuracy, 1 for
                         loss. Where all G are 0, a stays
Source:                  Zhang et al., "Federated Domain Generalization with Generalization Adjustment", CVPR 2023, and
                         its released code; s = 0.2, accuracy. E is 3 there, written out.

What is measured is of the sources' held-out examples, so selection by source validation sees examples that the weights
have followed, as in the released protocol; without ``holdout`` it is of the training examples.

Deviation: a_e is a domain's weight, shared by its clients; a domain's G is the mean over its clients by examples, and
domains that miss a round, or the one after, keep their weight but for the normalisation. Where a domain has several
clients of which some take part (``clients_per_round``), its G compares other clients of it before and after, and has
their differences in it. Deviation: where the run has
another server optimizer than SGD with learning rate 1, the averaged model is what that makes of the mean.

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
        s: Size of a step of the weights at first, in [0, 0.5]; it falls to about 0 over the rounds.
        measure: ``"accuracy"`` or ``"loss"``.
    """

    bound_to_rounds = True

    def __init__(self, *, s: float = 0.2, measure: Literal["accuracy", "loss"] = "accuracy") -> None:
        if not 0 <= s <= 0.5:
            raise ValueError(f"expected 0 <= s <= 0.5, got {s}")
        self.s, self.measure = s, measure
        self._after: PerDomain | None = None

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        """Ask what the last round's mean is worth to each domain; clients need no reference."""
        has_trained = any(key.startswith("before/") for key in self.state)
        self._after = ask.held_out()[self.measure] if has_trained else None
        return {}

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        """Move the weights by the last round's gaps, and average by them."""
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
