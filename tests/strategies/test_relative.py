"""Relative penalties: the weight of the schedule cannot bypass the limit of their gradient."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from toy import create_small, toy_domains

from fedhess.alignment.loading import load_strategy
from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import compute_statistic
from fedhess.alignment.step import Step, run_forward
from fedhess.alignment.strategy import DomainStrategy, PenaltyScale
from fedhess.base.errors import UsageError
from fedhess.domains import BENCHMARKS


@pytest.mark.parametrize("annealing", ["rescale", "reset"])
@pytest.mark.parametrize("name", ["hgp", "hutchinson", "cma"])
def test_the_gradient_of_the_weighted_penalty_is_no_longer_than_that_of_the_loss(
    name: str, annealing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    torch.manual_seed(0)
    model = create_small(input_shape=(12,), outputs=4, pretrained=False).double()
    passes = {domain: run_forward(model, *data) for domain, data in toy_domains().items()}
    strategy = load_strategy(name, {"weight": 1e4, "annealing": annealing})
    assert isinstance(strategy, DomainStrategy)

    class Ask:
        seed, server_round = 0, 1

        def __call__(self, statistic: str, **given: Tensor) -> PerDomain:
            return self.several(statistic, **given)[statistic]

        def several(self, *names: str, **given: Tensor) -> Mapping[str, PerDomain]:
            answers = {}
            for each in names:
                function = strategy.statistics[each]
                values = {key: compute_statistic(function, made.batch, **given) for key, made in passes.items()}
                values = {key: value.detach() for key, value in values.items()}
                answers[each] = PerDomain(values, dict.fromkeys(values, 1.0), dict.fromkeys(values, 100))
            return answers

    domain, made = next(iter(passes.items()))
    references = strategy.reference(Ask())  # type: ignore[arg-type]
    reference = {key: own if isinstance(own, Tensor) else own[domain] for key, own in references.items()}
    step = Step(model, made, {}, 0, 1)
    head = list(model.head.parameters())
    objective = strategy.objective(step, reference)
    of_both = torch.autograd.grad(objective, head, retain_graph=True)
    of_loss = torch.autograd.grad(step.loss, head)
    penalty = torch.cat([(a - b).flatten() for a, b in zip(of_both, of_loss, strict=True)]).norm()
    loss = torch.cat([gradient.flatten() for gradient in of_loss]).norm()
    assert 0.01 * loss < penalty <= 1.0001 * loss


@pytest.mark.parametrize("part", ["features", "head"])
def test_a_penalty_of_features_or_head_alone_is_limited(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    torch.manual_seed(0)
    model = create_small(input_shape=(12,), outputs=4, pretrained=False).double()
    step = Step(model, run_forward(model, *next(iter(toy_domains().values()))), {}, 0, 1)
    at = step.features if part == "features" else model.head.weight
    limited = torch.autograd.grad(step.limited(1e6 * at.square().sum()), at, retain_graph=True)[0]
    whole = [at] if part == "features" else [*model.head.parameters()]
    of_loss = torch.cat([each.flatten() for each in torch.autograd.grad(step.loss, whole)])
    torch.testing.assert_close(limited.norm(), of_loss.norm())
    with pytest.raises(UsageError, match="expected a penalty of the step's features or head"):
        step.limited(next(model.featurizer.parameters()).square().sum())


def test_a_limited_penalty_may_have_other_leaves_and_keeps_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    torch.manual_seed(0)
    model = create_small(input_shape=(12,), outputs=4, pretrained=False).double()
    step = Step(model, run_forward(model, *next(iter(toy_domains().values()))), {}, 0, 1)
    other = next(model.featurizer.parameters())
    penalty = 1e6 * step.features.square().sum()
    alone, both = (
        torch.autograd.grad(step.limited(own), other, retain_graph=True)[0]
        for own in (penalty, penalty + 1e6 * other.square().sum())
    )
    factor = alone.norm() / torch.autograd.grad(penalty, other, retain_graph=True)[0].norm()
    torch.testing.assert_close(both, alone + factor * 2e6 * other)


def test_absolute_references_are_the_means_whatever_the_state_has() -> None:
    answers = {"gradient": PerDomain({"a": torch.ones(2), "b": torch.zeros(2)}, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1})}
    references = PenaltyScale("absolute", {"count": torch.zeros(())}).references(answers)
    assert {name: value.tolist() for name, value in references.items()} == {"gradient": [0.5, 0.5]}


def test_absolute_penalties_are_not_limited() -> None:
    assert not load_strategy("hgp", {"scale": "absolute"}).limited  # type: ignore[union-attr]
    assert load_strategy("hgp", {}).limited  # type: ignore[union-attr]
