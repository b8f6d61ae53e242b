"""Promises 2, 5 and 6: penalties work, vanish when they should, and nothing depends on order, ids or memory."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhess import workplace
from fedhess.client import app as client_app
from fedhess.engines.inprocess import InProcessGrid

Run = Callable[..., Any]
PENALISED: dict[str, dict[str, Any]] = {
    "hgp": {"alpha": 0.02, "beta": 0.05},
    "hgp-mean-of-hgp": {"alpha": 0.02, "beta": 0.05, "form": "mean_of_hgp"},
    "hutchinson": {"alpha": 0.02, "beta": 0.05},
    "hutchinson-probes": {"alpha": 0.02, "beta": 0.05, "probes": 5},
}


def named(method: str) -> str:
    return method.partition("-")[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("coefficient", ["alpha", "beta"])
@pytest.mark.parametrize("method", PENALISED)
def test_each_coefficient_changes_the_update(toy_run: Run, method: str, coefficient: str) -> None:
    args = PENALISED[method] | dict.fromkeys(["alpha", "beta"], 0.0) | {coefficient: 0.05}
    erm = toy_run(strategy="erm").tensors
    penalised = toy_run(strategy=named(method), strategy_args=args).tensors
    assert (erm["head.weight"] - penalised["head.weight"]).abs().max() > 1e-5
    assert (erm["featurizer.second.weight"] - penalised["featurizer.second.weight"]).abs().max() > 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", PENALISED)
def test_coefficients_zero_are_erm_bit_for_bit(toy_run: Run, method: str, dtype: str) -> None:
    args = PENALISED[method] | {"alpha": 0.0, "beta": 0.0}
    erm = toy_run(strategy="erm", dtype=dtype, local_steps=3, momentum=0.9).tensors
    zero = toy_run(strategy=named(method), strategy_args=args, dtype=dtype, local_steps=3, momentum=0.9).tensors
    assert same(erm, zero)


@pytest.mark.parametrize("method", PENALISED)
def test_identical_domains_have_no_penalty(toy_run: Run, method: str) -> None:
    # A full batch of the same examples in every domain; form hgp_of_mean equals mean_of_hgp then.
    rows = toy_run(
        strategy=named(method),
        strategy_args=PENALISED[method],
        domains_options={"identical": True},
        batch_size=0,
    ).rows
    trained = [row for row in rows if row["role"] == "source" and row["round"] > 0]
    assert len(trained) == 9
    for row in trained:
        assert row["train_objective"] == pytest.approx(row["train_loss"], abs=1e-12)
    different = toy_run(strategy=named(method), strategy_args=PENALISED[method], batch_size=0).rows
    assert max(row["train_objective"] - row["train_loss"] for row in different if row["train_loss"]) > 1e-4


def test_the_penalty_aligns_what_it_names(toy_run: Run) -> None:
    changes = {"rounds": 60, "batch_size": 0, "lr": 0.05}
    ends = {}
    for strategy, args in {"erm": {}, "hgp": {"alpha": 0.0, "beta": 0.5}}.items():
        rows = toy_run(strategy=strategy, strategy_args=args, **changes).rows
        ends[strategy] = sum(row["gradient_distance"] for row in rows if row["round"] == 60 and row["role"] == "source")
    assert ends["hgp"] < 0.7 * ends["erm"]


def test_same_seed_same_bytes_and_another_seed_others(toy_run: Run) -> None:
    args = {"strategy": "hutchinson", "strategy_args": PENALISED["hutchinson-probes"], "dtype": "float32"}
    first, second, other = (toy_run(seed=seed, **args).tensors for seed in (3, 3, 4))
    assert same(first, second)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_seed_reaches_batches_and_not_only_the_initial_weights(toy_run: Run) -> None:
    from fedhess.sampling import batch_indices

    a, b = (batch_indices(48, batch_size=16, step=0, key=(seed, "north", 0)) for seed in (0, 1))
    assert not torch.equal(a, b)


class ShuffledGrid(InProcessGrid):
    """Answers in an order of its own."""

    order: Callable[[list[Message]], list[Message]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):  # type: ignore[override]
        return iter(self.order(list(super().send_and_receive(messages, timeout=timeout))))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(2, 2**63), min_size=4, max_size=4, unique=True),
    shuffle=st.randoms(use_true_random=False),
    method=st.sampled_from(["hgp", "hutchinson-probes"]),
)
def test_reply_order_and_node_ids_do_not_matter(toy_run: Run, ids: list[int], shuffle: Any, method: str) -> None:
    args = {"strategy": named(method), "strategy_args": PENALISED[method], "dtype": "float32", "rounds": 2}

    def wrap(grid: Grid) -> Grid:
        grid.__class__ = ShuffledGrid
        grid.order = lambda replies: shuffle.sample(replies, len(replies))  # type: ignore[attr-defined]
        return grid

    workplace.forget_everything()
    ordered = toy_run(**args)
    shuffled = toy_run(node_ids=ids, wrap=wrap, **args)
    assert same(ordered.tensors, shuffled.tensors)
    strip = [{key: value for key, value in row.items() if key != "seconds"} for row in ordered.rows]
    assert strip == [{key: value for key, value in row.items() if key != "seconds"} for row in shuffled.rows]


class Amnesia:
    """The real ClientApp in a process that forgets everything before each message."""

    def __call__(self, message: Message, context: Context) -> Message:
        workplace.forget_everything()
        return client_app(message, context)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("method", ["hgp", "hgp-mean-of-hgp", "hutchinson", "hutchinson-probes"])
def test_a_client_that_restarts_before_every_message_loses_nothing(toy_run: Run, method: str, steps: int) -> None:
    args = {"strategy": named(method), "strategy_args": PENALISED[method], "dtype": "float32", "local_steps": steps}
    assert same(toy_run(**args).tensors, toy_run(app=Amnesia(), **args).tensors)


def test_annealing_switches_at_its_step(toy_run: Run) -> None:
    steps = {"local_steps": 2, "rounds": 4}
    args = {"alpha": 0.0, "beta": 0.05, "weight": 40.0}
    switched = toy_run(strategy="hgp", strategy_args=args | {"anneal_steps": 4}, **steps).rows
    constant = toy_run(strategy="hgp", strategy_args=args | {"weight": 1.0}, **steps).rows
    objective = [
        {row["round"]: row["train_objective"] for row in rows if row["domain"] == "north"}
        for rows in (switched, constant)
    ]
    assert objective[0][2] == objective[1][2]  # steps 2 and 3: weight 1
    assert objective[0][3] != objective[1][3]  # step 4: weight 40
