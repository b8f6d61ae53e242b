"""GA: what a client measures, and what a domain of several clients makes of it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from federations import toy_benchmark, toy_run
from torch import Tensor
from toy import SOURCES, toy_config

from fedhess.alignment import ClientReply, DomainStrategy, LocalTraining, PerDomain, Reference
from fedhess.models.building import build_model
from fedhess.models.prepared import local_domain
from fedhess.strategies.ga import GA

__all__ = ["toy_benchmark", "toy_run"]


class Peek(DomainStrategy):
    """Keeps what clients measured of what they trained."""

    seen: ClassVar[list[ClientReply]] = []

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, Tensor]:
        return phase.mean_update(each=self.seen.append, held_out=True)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_client_measures_what_it_trained_on_what_it_holds_out(toy_run: Callable[..., Any], steps: int) -> None:
    Peek.seen.clear()
    settings = {"domains_options": {"holdout": 0.25}, "rounds": 1, "local_steps": steps}
    toy_run(strategy="tests.strategies.test_ga:Peek", **settings)
    config = toy_config(**settings)
    assert [reply.client for reply in Peek.seen] == list(SOURCES)
    for reply in Peek.seen:
        model = build_model(config)
        for name, tensor in model.state_dict().items():
            tensor.sub_(reply.update[name])
        data = local_domain(config, domain=reply.client, role="source")
        ((inputs, labels),) = data.batches([data.evaluate_indices])
        logits = model(inputs).detach()
        assert reply.held_out[reply.client] == pytest.approx(
            {
                "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
                "accuracy": float((logits.argmax(1) == labels).double().mean()),
            }
        )


class Phase:
    """A round in which north has two clients, whose models do as given; keeps the weights that it was asked for."""

    config = toy_config(rounds=10)

    def __init__(self, server_round: int) -> None:
        self.server_round = server_round
        self.weights: Mapping[str, float] = {}

    def mean_update(self, weights: Mapping[str, float], *, each: Callable[[ClientReply], None], held_out: bool) -> Any:
        assert held_out
        self.weights = weights
        replies = ("north", 10, 1.0), ("north", 30, 0.2), ("south", 5, 0.5), ("west", 5, 0.5)
        for domain, examples, accuracy in replies:
            each(ClientReply(domain, 1.0, {domain: examples}, 1, {}, {domain: {"accuracy": accuracy}}))
        return {}


class Ask:
    """Each domain's accuracy under the averaged model."""

    def held_out(self) -> dict[str, PerDomain]:
        values = {"north": 0.5, "south": 0.3, "west": 0.5}
        tensors = {domain: torch.tensor(value, dtype=torch.float64) for domain, value in values.items()}
        return {"accuracy": PerDomain(tensors, dict.fromkeys(values, 1.0), dict.fromkeys(values, 1))}


def test_a_domains_gap_is_the_mean_over_its_clients_by_examples() -> None:
    strategy, first, second = GA(s=0.3), Phase(1), Phase(2)
    for phase in (first, second):
        strategy.local_training(phase, strategy.reference(Ask()))  # type: ignore[arg-type]
    assert first.weights == dict.fromkeys(SOURCES, 1 / 3)
    step = (0.3 + 0.3 / 10) / 3  # of round 0; gaps are 0.1, -0.2 and 0
    moved = {"north": 1 / 3 - 0.5 * step, "south": 1 / 3 + step, "west": 1 / 3}
    assert second.weights == pytest.approx({domain: weight / (1 + 0.5 * step) for domain, weight in moved.items()})
