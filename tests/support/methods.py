"""Every strategy as the tests of promises need it: settings that matter, the neutral setting, what it refers to."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One way to use a strategy.

    Attributes:
        strategy: Its name.
        args: Arguments under which its term matters.
        neutral: Arguments under which it is ERM bit for bit; None where there are none.
        has_reference: Whether its penalty is a distance to a reference, zero when the domains are identical.
        changes: Settings of the run that it needs to be seen.
        moves_features: Whether its term reaches the featurizer.
    """

    strategy: str
    args: dict[str, Any]
    neutral: dict[str, Any] | None
    has_reference: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    moves_features: bool = True


AT_ONCE = {"anneal_steps": 0}
PUBLISHED = {"scale": "absolute"}
METHODS: dict[str, Method] = {
    "hgp-alpha": Method("hgp", {"alpha": 0.05, "beta": 0.0} | PUBLISHED, {"alpha": 0.0, "beta": 0.0}),
    "hgp-beta": Method("hgp", {"alpha": 0.0, "beta": 0.05} | PUBLISHED, {"alpha": 0.0, "beta": 0.05, "weight": 0.0}),
    "hgp-mean-of-hgp": Method(
        "hgp",
        {"alpha": 0.02, "beta": 0.05, "form": "mean_of_hgp"} | PUBLISHED,
        {"alpha": 0.0, "beta": 0.0, "form": "mean_of_hgp"},
    ),
    "hgp-relative": Method("hgp", {}, {"weight": 0.0}),
    "hutchinson-alpha": Method("hutchinson", {"alpha": 0.05, "beta": 0.0} | PUBLISHED, {"alpha": 0.0, "beta": 0.0}),
    "hutchinson-beta": Method(
        "hutchinson", {"alpha": 0.0, "beta": 0.05} | PUBLISHED, {"alpha": 0.05, "beta": 0.05, "weight": 0.0}
    ),
    "hutchinson-relative": Method("hutchinson", {}, {"weight": 0.0}),
    "hutchinson-probes": Method(
        "hutchinson", {"alpha": 0.02, "beta": 0.05, "probes": 5} | PUBLISHED, {"alpha": 0.0, "beta": 0.0, "probes": 5}
    ),
    # Its expectation has the off-diagonal entries besides the distance: identical domains have a penalty.
    "hutchinson-independent": Method(
        "hutchinson",
        {"alpha": 0.02, "beta": 0.0, "probes": 5, "independent": True} | PUBLISHED,
        {"alpha": 0.0, "beta": 0.0, "probes": 5, "independent": True},
        has_reference=False,
    ),
    "irm": Method("irm", {"weight": 2.0} | AT_ONCE, {"weight": 0.0} | AT_ONCE, has_reference=False),
    "irm-squared": Method(
        "irm", {"weight": 2.0, "form": "squared"} | AT_ONCE, {"weight": 0.0} | AT_ONCE, has_reference=False
    ),
    "vrex": Method("vrex", {"weight": 0.5} | AT_ONCE, {"weight": 0.0} | AT_ONCE),
    "coral": Method("coral", {"gamma": 1.0}, {"gamma": 0.0}),
    "iga": Method("iga", {"coefficient": 0.02, "form": "mean"}, {"coefficient": 0.0, "form": "mean"}),
    "iga-sum": Method("iga", {"coefficient": 0.01, "form": "sum"}, {"coefficient": 0.0, "form": "sum"}),
    "fishr": Method("fishr", {"weight": 20.0, "ema": 0.7} | AT_ONCE, {"weight": 0.0} | AT_ONCE),
    # Against a moving average identical domains still have a distance: to their own past. Without one they have none.
    "fediir": Method("fediir", {"gamma": 0.05, "ema": 0.0}, {"gamma": 0.0}),
    "fediir-average": Method("fediir", {"gamma": 0.05, "ema": 0.9}, {"gamma": 0.0}, has_reference=False),
    "server_alignment": Method("server_alignment", {"step": 0.05}, {"step": 0.0}, False, moves_features=False),
    "groupdro": Method("groupdro", {"eta": 0.3}, {"eta": 0.0}, has_reference=False),
    "groupdro-projection": Method(
        "groupdro", {"eta": 0.3, "form": "projection"}, {"eta": 0.0, "form": "projection"}, has_reference=False
    ),
    "cma-blocks": Method("cma", {"a": 0.1, "b": 0.5, "form": "blocks"} | PUBLISHED, {"weight": 0.0, "form": "blocks"}),
    "cma-sketch": Method("cma", {"a": 0.1, "b": 9.0, "probes": 4} | PUBLISHED, {"a": 0.0, "b": 0.0}),
    "rsc": Method("rsc", {}, {"f": 0.0}, has_reference=False),
    "fedgma": Method("fedgma", {"tau": 0.9}, {"tau": 0.0}, has_reference=False),
    # No setting makes it ERM: with one client it is local training, test_alive.py.
    "scaffold": Method("scaffold", {}, None, has_reference=False, changes={"local_steps": 3}),
    "fedomg": Method("fedomg", {}, {"k": 0.0}, has_reference=False),
    "ga": Method("ga", {}, {"s": 0.0}, has_reference=False, changes={"local_steps": 2}),
    "ga-loss": Method("ga", {"s": 0.4, "measure": "loss"}, {"s": 0.0, "measure": "loss"}, has_reference=False),
    "fedsam": Method("fedsam", {}, {"rho": 0.0}, has_reference=False),
    "fedsam-asam": Method("fedsam", {"form": "asam"}, {"rho": 0.0, "form": "asam"}, has_reference=False),
    "sagm": Method("sagm", {"rho": 0.2}, {"rho": 0.0, "alpha": 0.0}, has_reference=False),
    "fedsr": Method("fedsr", {}, {"l2r": 0.0, "cmi": 0.0, "sampled": False}, has_reference=False),
    # Without a sample and the divergence only the features' length is left.
    "fedsr-fedl2r": Method(
        "fedsr", {"l2r": 0.1, "cmi": 0.0, "sampled": False}, {"l2r": 0.0, "cmi": 0.0, "sampled": False}, False
    ),
    "fedprox": Method("fedprox", {"mu": 3.0}, {"mu": 0.0}, has_reference=False, changes={"local_steps": 3}),
}
# Fish has no coefficient that makes it ERM: it moves the model along a relay. Its own neutral setting is eps = 1 with
# one source domain and no momentum, which is local training: test_alive.py. Its server takes steps of SGD alone.
RELAYS: dict[str, Method] = {
    "fish": Method("fish", {"eps": 0.5}, {}, has_reference=False),
    "fish-momentum": Method(
        "fish", {"eps": 0.5, "shuffle": True}, {}, has_reference=False, changes={"momentum": 0.9, "local_steps": 2}
    ),
}
