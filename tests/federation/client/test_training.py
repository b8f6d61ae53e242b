"""What a client does in a round: so many steps, or so many passes over its own examples, by SGD or by Adam."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from domain_statistics import cross_entropy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy import SOURCES, toy_config, toy_domains

from fedhess.alignment.statistics import head_batch
from fedhess.alignment.step import Step, round_steps
from fedhess.alignment.strategy import DomainStrategy, PenaltySchedule
from fedhess.base.errors import UsageError
from fedhess.base.seeds import batch_indices, seeded_generator, steps_per_pass
from fedhess.curvature import head_gradient
from fedhess.domains import BENCHMARKS
from fedhess.domains.benchmark import SOURCE
from fedhess.domains.domain import TensorDomain
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.evaluation import ALIGNMENT_EXAMPLES, evaluate_model
from fedhess.federation.client.training import Holding, train_locally, writes_parameters
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server.app import make_server_app
from fedhess.federation.server.global_model import GlobalModel
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain, local_domain
from fedhess.settings.run_config import RunConfig


@pytest.fixture(autouse=True)
def toy_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    memory.MEMORY.clear()


# -- How many steps ----------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 70), batch=st.integers(0, 80), epochs=st.integers(1, 3), server_round=st.integers(1, 4))
def test_every_epoch_takes_every_example_once(size: int, batch: int, epochs: int, server_round: int) -> None:
    config = toy_config(local_epochs=epochs, batch_size=batch)
    steps = round_steps(config, train_size=size, server_round=server_round)
    each = 1 if batch in range(size, 10**6) or batch == 0 else -(-size // batch)
    assert len(steps) == epochs * each
    assert steps.start == (server_round - 1) * len(steps), "rounds follow each other without a gap"
    for epoch in range(epochs):
        key = (0, "a", 0)
        taken = [
            batch_indices(size, batch_size=batch, step=step, key=key, keeps_rest=True)
            for step in steps[epoch * each : (epoch + 1) * each]
        ]
        assert torch.cat(taken).sort().values.tolist() == list(range(size))
        assert all(len(part) == batch for part in taken[:-1])


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 70), batch=st.integers(0, 80), steps=st.integers(1, 9), server_round=st.integers(1, 4))
def test_local_steps_are_exactly_so_many_and_their_batches_are_whole(
    size: int, batch: int, steps: int, server_round: int
) -> None:
    config = toy_config(local_steps=steps, batch_size=batch)
    assert round_steps(config, train_size=size, server_round=server_round) == range(
        (server_round - 1) * steps, server_round * steps
    )
    whole = size if batch == 0 else min(size, batch)
    assert all(len(batch_indices(size, batch_size=batch, step=step, key=(0,))) == whole for step in range(2 * steps))


def test_passes_with_and_without_the_rest() -> None:
    assert [steps_per_pass(48, batch_size=batch, keeps_rest=False) for batch in (0, 16, 20, 48, 99)] == [1, 3, 2, 1, 1]
    assert [steps_per_pass(48, batch_size=batch, keeps_rest=True) for batch in (0, 16, 20, 48, 99)] == [1, 3, 3, 1, 1]


# -- What they are -----------------------------------------------------------------------------------------------------


def trained(config: RunConfig, domain: str, *, server_round: int = 1) -> tuple[dict[str, Tensor], list[Step]]:
    """Train one client from the initial model; its update and its steps."""
    steps: list[Step] = []

    class Watched(DomainStrategy):
        def objective(self, step: Step, reference: Any) -> Tensor:
            steps.append(step)
            return super().objective(step, reference)

    model = build_model(config)
    update = train_locally(
        model,
        [Holding(local_domain(config, domain=domain, role=SOURCE))],
        before={name: value.clone() for name, value in model.state_dict().items()},
        config=config,
        strategy=Watched(),
        server_round=server_round,
    )
    return update.update, steps


def by_hand(config: RunConfig, domain: str, make: Callable[..., torch.optim.Optimizer], epochs: int) -> HeadedModel:
    """The same in a plain loop: epochs over shuffled examples, a smaller last batch."""
    inputs, labels = toy_domains(uneven=True)[domain]
    data: LocalDomain = local_domain(config, domain=domain, role=SOURCE)
    model = build_model(config)
    optimizer = make(model.parameters())
    size, batch = len(labels), config.batch_size
    for epoch in range(epochs):
        order = torch.randperm(size, generator=seeded_generator(*data.key, "batches", epoch))
        for start in range(0, size, batch):
            chosen = order[start : start + batch]
            optimizer.zero_grad()
            cross_entropy(model, (inputs[chosen], labels[chosen])).backward()
            optimizer.step()
    return model


OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd with momentum and decay": (
        {"momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (
        {"client_optimizer": "Adam", "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_epochs_equal_a_plain_loop_over_shuffled_examples(name: str) -> None:
    changes, make = OPTIMIZERS[name]
    config = toy_config(local_epochs=2, batch_size=20, domains_options={"uneven": True}, **changes)
    before = dict(build_model(config).named_parameters())
    for domain, steps in zip(SOURCES, (6, 6, 8), strict=True):  # 48, 56 and 64 examples
        update, taken = trained(config, domain)
        assert len(taken) == steps
        assert [step.index for step in taken] == list(range(steps))
        expected = by_hand(config, domain, make, epochs=2)
        for parameter, value in expected.named_parameters():
            torch.testing.assert_close(before[parameter] - update[parameter], value, rtol=0, atol=1e-12)


def test_one_epoch_of_one_batch_is_one_step() -> None:
    step, _ = trained(toy_config(local_steps=1, batch_size=0), "north")
    epoch, _ = trained(toy_config(local_epochs=1, batch_size=0), "north")
    for name, value in step.items():
        torch.testing.assert_close(epoch[name], value, rtol=0, atol=1e-15)


def test_only_one_plain_step_leaves_the_parameters_alone() -> None:
    assert not writes_parameters(toy_config(local_steps=1))
    assert not writes_parameters(toy_config(local_steps=1, momentum=0.9, weight_decay=0.1))
    assert writes_parameters(toy_config(local_steps=1, momentum=0.9), carries_momentum=True)
    for changes in ({"local_steps": 2}, {"local_epochs": 1}, {"client_optimizer": "Adam"}):
        assert writes_parameters(toy_config(**changes)), changes


def test_one_step_in_exact_form_is_that_of_sgd_with_decay_and_fresh_momentum() -> None:
    config = toy_config(local_steps=1, momentum=0.9, weight_decay=0.1)
    exact, _ = trained(config, "north")
    before = build_model(config).state_dict()
    plain, _ = trained(toy_config(local_steps=1), "north")
    for name, gradient in plain.items():
        torch.testing.assert_close(exact[name], gradient + config.lr * 0.1 * before[name], rtol=0, atol=1e-12)


# -- What is measured of them ------------------------------------------------------------------------------------------


def test_alignment_is_measured_on_every_class_of_a_split_that_is_sorted_by_class() -> None:
    config, size = toy_config(), 4 * ALIGNMENT_EXAMPLES
    model, labels = build_model(config), torch.arange(size) * 4 // size
    inputs = torch.randn(size, 12, generator=torch.Generator().manual_seed(0))
    data = TensorDomain("sorted", inputs, labels=labels)

    def measured(seed: int) -> Tensor:
        everything = torch.arange(size)
        split = LocalDomain(
            data, train_indices=everything[:0], evaluate_indices=everything, key=(seed, "sorted", 0),
            device=torch.device("cpu"), dtype=torch.float64,
        )  # fmt: skip
        return evaluate_model(model, split, with_alignment=True).alignment["gradient"]

    with torch.no_grad():
        whole = head_gradient(head_batch(model, model.features(inputs.double()), labels))  # type: ignore[arg-type]
    assert (measured(0) - whole).norm() < 0.3, "of the first class alone it is about 1 away"
    assert torch.equal(measured(0), measured(0))
    assert not torch.equal(measured(0), measured(1))


# -- In a federation ---------------------------------------------------------------------------------------------------


class Recorded(DomainStrategy):
    """ERM whose schedule jumps at step 7, and which writes down every step of every client."""

    schedule = PenaltySchedule(weight=2.0, anneal_steps=7, annealing="reset")
    seen: list[tuple[int, int]] = []  # noqa: RUF012 - of all clients, emptied by the test

    def objective(self, step: Step, reference: Any) -> Tensor:
        self.seen.append((step.server_round, step.index))
        return super().objective(step, reference)


class Growing(DomainStrategy):
    """Asks for more values in each round, and by a name that a parameter of ours may have."""

    statistics = {"first": lambda batch, *, count, of: batch.loss.expand(count)}  # noqa: RUF012
    answers: list[int] = []  # noqa: RUF012 - emptied by the test

    def reference(self, ask: Any) -> Any:
        self.answers += [len(ask("first", count=count, of="x").mean()) for count in (ask.server_round, 7)]
        return {}


def federate(config: RunConfig) -> None:
    run_in_process(
        make_server_app(),
        client_app,
        run_config=config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": 4} for index in range(4)],
    )


def test_clients_of_a_federation_take_as_many_steps_as_their_examples_need(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded.seen.clear()
    resets: list[int] = []
    monkeypatch.setattr(GlobalModel, "reset_optimizer", lambda self: resets.append(len(Recorded.seen)))
    config = toy_config(
        strategy="tests.federation.client.test_training:Recorded",
        local_epochs=1,
        batch_size=20,
        rounds=3,
        domains_options={"uneven": True},
    )
    federate(config)
    a_round = [3, 3, 4]  # 48, 56 and 64 examples
    expected = [
        (number, (number - 1) * steps + step) for number in (1, 2, 3) for steps in a_round for step in range(steps)
    ]
    assert Recorded.seen == expected
    assert resets == [sum(a_round)], "in round 2, where the client with most examples comes to step 7"


def test_the_shape_of_a_statistic_may_depend_on_what_is_given() -> None:
    Growing.answers.clear()
    federate(toy_config(strategy="tests.federation.client.test_training:Growing", rounds=3))
    assert Growing.answers[-6:] == [1, 7, 2, 7, 3, 7]


def test_a_penalty_that_local_epochs_never_reach_is_refused() -> None:
    config = toy_config(strategy="fishr", strategy_args={"anneal_steps": 2}, local_epochs=1, batch_size=0, rounds=2)
    with pytest.raises(UsageError, match=r"the run takes 2 local steps and the penalty begins at step 2"):
        federate(config)
    federate(config.model_copy(update={"rounds": 3}))
