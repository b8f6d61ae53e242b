"""Promises 2, 5 and 6: penalties work, vanish when they should, and nothing depends on order, ids or memory."""

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from crossing import crossed
from flwr.app import Context, Message
from flwr.serverapp import Grid
from methods import METHODS, RELAYS, Method
from torch import Tensor
from toy import toy_config

from fedhess.alignment.loading import BUILT_IN, load_strategy
from fedhess.alignment.step import Step
from fedhess.alignment.strategy import Ask, DomainStrategy
from fedhess.base.errors import FederationError, UsageError
from fedhess.curvature import HeadBatch
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.batches import round_batch
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.models.prepared import local_domain

Run = Callable[..., Any]
# One of each kind: two exchanges, probes, values by domain, an average, weights, a relay, parameters of the strategy's
# own, every update by itself, weights by how well it does.
KINDS = ["hgp-alpha", "hutchinson-probes", "fishr", "fediir-average", "groupdro-projection", "fish-momentum", "fedsr"]
KINDS += ["scaffold", "ga"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def run_of(method: Method, **changes: Any) -> dict[str, Any]:
    """Settings of a run of a method."""
    return {"strategy": method.strategy, "strategy_args": method.args} | method.changes | changes


def server_of(name: str) -> dict[str, Any]:
    """Settings of a server that has a state, where the method lets it have one."""
    return {} if name in RELAYS else {"server_optimizer": "Adam", "server_lr": 0.01}


_BASELINES: dict[str, dict[str, torch.Tensor]] = {}


def erm_with(toy_run: Run, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights at the end of a run of ERM, computed once for all methods."""
    key = repr(changes)
    if key not in _BASELINES:
        _BASELINES[key] = toy_run(strategy="erm", **changes).tensors
    return _BASELINES[key]


@pytest.mark.parametrize("name", METHODS | RELAYS)
def test_the_term_changes_the_update_and_no_honest_client_is_blamed(toy_run: Run, name: str) -> None:
    method = (METHODS | RELAYS)[name]
    erm = erm_with(toy_run, **method.changes, evaluate_every=3)
    finished = toy_run(**run_of(method), evaluate_every=3, norm_bound=10.0)
    penalised = finished.tensors
    assert finished.server.federation.ledger.failures == []
    if method.has_reference:
        assert max(penalties(finished.rows, method)) > 1e-5
    assert (erm["head.weight"] - penalised["head.weight"]).abs().max() > 1e-5
    if method.moves_features:
        assert (erm["featurizer.second.weight"] - penalised["featurizer.second.weight"]).abs().max() > 1e-7


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.neutral is not None])
def test_the_neutral_setting_is_erm_bit_for_bit(toy_run: Run, name: str) -> None:
    method = METHODS[name]
    changes = {"dtype": "float32", "local_steps": 2, "momentum": 0.9, "rounds": 2, "evaluate_every": 2}
    erm = erm_with(toy_run, **changes)
    neutral = toy_run(strategy=method.strategy, strategy_args=method.neutral, **changes).tensors
    assert same(erm, neutral)


@pytest.mark.parametrize("name", ["hgp-alpha", "hutchinson-alpha", "cma-sketch", "fishr"])
def test_a_penalty_that_is_off_leaves_the_server_optimizer_alone(toy_run: Run, name: str) -> None:
    method, changes = METHODS[name], {"server_optimizer": "Adam", "server_lr": 0.01, "evaluate_every": 3}
    args = {**(method.neutral or {}), "annealing": "reset", "anneal_steps": 2}
    neutral = toy_run(strategy=method.strategy, strategy_args=args, **changes).tensors
    assert same(erm_with(toy_run, **changes), neutral)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.has_reference])
def test_identical_domains_have_no_penalty(toy_run: Run, name: str) -> None:
    # A full batch of the same examples in every domain; form hgp_of_mean equals mean_of_hgp then.
    method = METHODS[name]
    changes = {"batch_size": 0, "rounds": 2}
    rows = toy_run(**run_of(method, domains_options={"identical": True}, **changes)).rows
    assert penalties(rows, method) == pytest.approx([0] * 6, abs=1e-12)


def penalties(rows: list[dict[str, Any]], method: Method) -> list[float]:
    """What the objective of each source client has besides its loss, in every round."""
    strategy = load_strategy(method.strategy, method.args)
    assert isinstance(strategy, DomainStrategy)
    divisor = strategy.schedule.divisor(0)
    return [row["train_objective"] - row["train_loss"] / divisor for row in rows if row["train_loss"] is not None]


def test_identical_domains_give_the_server_nothing_to_align(toy_run: Run) -> None:
    changes = {"domains_options": {"identical": True}, "batch_size": 0}
    erm = toy_run(strategy="erm", **changes).tensors
    aligned = toy_run(**run_of(METHODS["server_alignment"], **changes)).tensors
    assert all(torch.allclose(erm[key], aligned[key], rtol=0, atol=1e-12) for key in erm)
    weighted = toy_run(**run_of(METHODS["groupdro"], **changes)).tensors
    assert all(torch.allclose(erm[key], weighted[key], rtol=0, atol=1e-12) for key in erm)


@pytest.mark.parametrize("steps", [1, 3])
def test_fish_with_one_domain_going_the_whole_way_is_local_training(toy_run: Run, steps: int) -> None:
    alone = {"sources": ("north",), "local_steps": steps, "rounds": 4}
    whole_way = {"strategy": "fish", "strategy_args": {"eps": 1.0}}
    assert same(toy_run(**whole_way, **alone).tensors, toy_run(strategy="erm", **alone).tensors)
    assert not same(toy_run(**whole_way, **alone, momentum=0.9).tensors, toy_run(**alone, momentum=0.9).tensors), (
        "the relay's momentum lives on"
    )


def test_scaffold_with_one_client_is_local_training(toy_run: Run) -> None:
    alone = {"sources": ("north",), "local_steps": 3, "rounds": 4, "momentum": 0.9}
    assert same(toy_run(strategy="scaffold", **alone).tensors, toy_run(strategy="erm", **alone).tensors)


def test_scaffold_refuses_a_client_optimizer_that_hides_the_gradient(toy_run: Run) -> None:
    with pytest.raises(UsageError, match=r"--strategy scaffold: .* which Adam does not show; give .* SGD"):
        toy_run(strategy="scaffold", client_optimizer="Adam")


def test_fish_takes_a_part_of_a_relays_way(toy_run: Run) -> None:
    fish = toy_run(strategy="fish", strategy_args={"eps": 1.0}, local_steps=3).tensors
    erm = toy_run(strategy="erm", local_steps=3).tensors
    assert (fish["head.weight"] - erm["head.weight"]).abs().max() > 1e-4  # three clients: a relay is no mean
    half = toy_run(strategy="fish", strategy_args={"eps": 0.5}, rounds=1).tensors
    whole = toy_run(strategy="fish", strategy_args={"eps": 1.0}, rounds=1).tensors
    start = toy_run(strategy="erm", rounds=1, lr=1e-30).tensors
    for key, value in half.items():
        torch.testing.assert_close(value - start[key], 0.5 * (whole[key] - start[key]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "server", [{"server_optimizer": "Adam"}, {"server_lr": 0.5}, {"server_optimizer_args": {"momentum": 0.9}}]
)
def test_fish_refuses_a_server_optimizer_that_is_not_its_own(toy_run: Run, server: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"--strategy fish: its server takes .* --server-optimizer SGD --server-lr 1; got"
    ):
        toy_run(strategy="fish", **server)


def test_fish_refuses_a_client_optimizer_whose_state_its_relay_would_lose(toy_run: Run) -> None:
    with pytest.raises(
        UsageError, match=r"--strategy fish: .* that of Adam would be lost; give --client-optimizer SGD"
    ):
        toy_run(strategy="fish", client_optimizer="Adam")


def test_the_penalty_aligns_what_it_names(toy_run: Run) -> None:
    changes = {"rounds": 25, "batch_size": 0, "lr": 0.1, "evaluate_every": 25}
    ends = {}
    for strategy, args in {"erm": {}, "hgp": {"alpha": 0.0, "beta": 0.5}}.items():
        rows = toy_run(strategy=strategy, strategy_args=args, **changes).rows
        ends[strategy] = sum(row["gradient_distance"] for row in rows if row["round"] == 25 and row["role"] == "source")
    assert ends["hgp"] < 0.7 * ends["erm"]


def test_same_seed_same_bytes_and_another_seed_others(toy_run: Run) -> None:
    args = run_of(METHODS["hutchinson-probes"], dtype="float32")
    first, second, other = (toy_run(seed=seed, **args).tensors for seed in (3, 3, 4))
    assert same(first, second)
    assert not torch.equal(first["head.weight"], other["head.weight"])


class Inert(DomainStrategy):
    """Its penalty cannot change what is trained."""

    def __init__(self, *, kind: str) -> None:
        self.kind = kind

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        square = step.features.square().mean()
        return {"float": float(square.detach()), "detached": square.detach(), "shape": step.features[0]}[self.kind]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "got"), [("float", "a float"), ("detached", "a tensor without a gradient"), ("shape", r"shape \(390,\)")]
)
def test_a_penalty_that_could_not_work_is_refused_by_name(toy_run: Run, kind: str, got: str) -> None:
    expected = rf"strategy Inert, penalty: expected a tensor of shape \(\) with a gradient, or None .*, got {got}"
    with pytest.raises(FederationError, match=expected):
        toy_run(strategy="tests.promises.test_alive:Inert", strategy_args={"kind": kind})


class Shuffling(DomainStrategy):
    """Draws from torch's global generator in one of its hooks, or from the step's own."""

    def __init__(self, *, hook: str = "penalty") -> None:
        self.hook = hook
        self.statistics = {"random": self.random}

    @staticmethod
    def random(batch: HeadBatch) -> Tensor:
        """A statistic that draws."""
        return torch.rand_like(batch.weight)

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        value = ask("random").mean() if self.hook == "statistic" else torch.zeros(())
        return {"value": torch.rand(()) if self.hook == "reference" else value}

    def penalty(self, step: Step, reference: Mapping[str, Tensor]) -> Tensor:
        generator = {"generator": step.generator} if self.hook == "generator" else {}
        drawn = torch.randperm(len(step.labels), **generator) if self.hook in ("penalty", "generator") else slice(0, 3)
        return (step.features[drawn][:3] * (1 + reference["value"].mean())).square().mean()


@pytest.mark.parametrize("hook", ["penalty", "generator", "statistic", "reference"])
def test_random_numbers_of_a_custom_strategy_are_those_of_the_seed(toy_run: Run, hook: str) -> None:
    args = {"strategy": "tests.promises.test_alive:Shuffling", "strategy_args": {"hook": hook}}
    args |= {"local_steps": 2, "rounds": 2, "evaluate_every": 2}
    ends = []
    for state, app in ((1, client_app), (2, client_app), (3, Amnesia())):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        ends.append(toy_run(app=app, **args).tensors)
        assert torch.equal(torch.get_rng_state(), before), "the caller's generator is as it was"
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_a_steps_generator_differs_by_domain_client_and_step() -> None:
    draws = {
        Step(model=None, forward=None, before={}, index=index, server_round=1, key=key).generator.initial_seed()  # type: ignore[arg-type]
        for index in (0, 1)
        for key in ((0, "north", 0), (0, "north", 1), (0, "south", 0), (1, "north", 0))
    }
    assert len(draws) == 8


def test_the_seed_reaches_a_clients_batches_and_not_only_the_initial_weights() -> None:
    batches = []
    for seed in (0, 1, 0):
        config = toy_config(seed=seed)
        batches.append(round_batch(local_domain(config, domain="north", role="source"), config, step=0)[0])
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_domains_of_one_seed_draw_different_batches() -> None:
    config = toy_config(domains_options={"identical": True})
    north, south = (
        round_batch(local_domain(config, domain=name, role="source"), config, step=0)[0] for name in ("north", "south")
    )
    assert not torch.equal(north, south)


class ShuffledGrid(InProcessGrid):
    """Answers in an order of its own."""

    order: Callable[[list[Message]], list[Message]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):  # type: ignore[override]
        return iter(self.order(list(super().send_and_receive(messages, timeout=timeout))))


class Amnesia:
    """The real ClientApp in a process that forgets everything before each message."""

    def __call__(self, message: Message, context: Context) -> Message:
        memory.MEMORY.clear()
        return client_app(message, context)


def assert_undisturbed(toy_run: Run, directory: Path, *, restarts: bool = True, **args: Any) -> None:
    """Compare a run with one whose node ids and order of replies are drawn, whose clients forget, and that resumes."""
    draws = random.Random(repr(args))
    straight = toy_run(**args, rounds=2)
    settings = {
        "node_ids": draws.sample(range(2, 2**63), straight.server.config.source_clients + 1),
        "app": Amnesia() if restarts else client_app,
        "directory": directory,
    }

    def wrap(grid: Grid) -> Grid:
        grid.__class__ = ShuffledGrid
        grid.order = lambda replies: draws.sample(replies, len(replies))  # type: ignore[attr-defined]
        return grid

    parts = [toy_run(**args, **settings, rounds=rounds, wrap=wrap) for rounds in ((1, 2) if restarts else (2,))]
    assert same(straight.tensors, parts[-1].tensors)
    # After a restart the model is sent again.
    left_out = {"seconds", "bytes_down", "bytes_up", "sent"} if restarts else {"seconds"}
    expected, rows = (
        [{key: value for key, value in row.items() if key not in left_out} for row in every]
        for every in (straight.rows, [row for part in parts for row in part.rows])
    )
    assert rows == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS | RELAYS)
def test_node_ids_reply_order_forgetful_clients_and_a_resumed_server_change_nothing(
    toy_run: Run, name: str, tmp_path: Path
) -> None:
    args = run_of((METHODS | RELAYS)[name], dtype="float32", local_steps=1, **server_of(name))
    assert_undisturbed(toy_run, tmp_path / "run", **args)


@pytest.mark.parametrize("name", ["hgp-alpha", "groupdro", "fish-momentum"])
def test_traffic_does_not_depend_on_node_ids_and_reply_order(toy_run: Run, name: str, tmp_path: Path) -> None:
    assert_undisturbed(toy_run, tmp_path / "run", restarts=False, **run_of((METHODS | RELAYS)[name]))


SCHEDULED = {
    "hgp": {"alpha": 0.02, "beta": 0.05, "scale": "absolute"},
    "hutchinson": {"alpha": 0.05, "beta": 0.05, "scale": "absolute"},
    "irm": {},
    "vrex": {},
    "fishr": {},
}


@pytest.mark.parametrize(
    ("strategy", "annealing"),
    [*crossed(list(SCHEDULED)[:-1], ["rescale", "reset"]), ("fishr", "rescale"), ("fishr", "reset")],
)
def test_annealing_switches_exactly_at_its_step(toy_run: Run, strategy: str, annealing: str) -> None:
    """Round r begins with step r - 1, whose objective a row has; up to step 3 the weight is 1, Fishr's with reset 0."""
    settings = {"local_steps": 1, "rounds": 5, "strategy": strategy}
    args = SCHEDULED[strategy] | {"weight": 40.0, "annealing": annealing}
    switched = objectives(toy_run(strategy_args=args | {"anneal_steps": 4}, **settings).rows)
    before = 0.0 if (strategy, annealing) == ("fishr", "reset") else 1.0
    constant = objectives(toy_run(strategy_args=args | {"weight": before, "anneal_steps": 0}, **settings).rows)
    assert [switched[number] == constant[number] for number in range(1, 6)] == [True, True, True, True, False]


def objectives(rows: list[dict[str, Any]]) -> dict[int, float]:
    return {row["round"]: row["train_objective"] for row in rows if row["domain"] == "north"}


def test_the_server_optimizer_begins_anew_at_the_annealing_step(toy_run: Run) -> None:
    settings = {"rounds": 3, "server_optimizer": "Adam", "server_lr": 0.01, "strategy": "vrex"}
    ends = {}
    for annealing in ("reset", "rescale"):
        # Weight 1 on both sides of the step: what differs is the optimizer alone.
        args = {"weight": 1.0, "anneal_steps": 2, "annealing": annealing}
        ends[annealing] = toy_run(strategy_args=args, **settings)
    step = ends["reset"].server.model.optimizer.state_dict()["state"][0]["step"]
    assert float(step) == 1.0
    assert float(ends["rescale"].server.model.optimizer.state_dict()["state"][0]["step"]) == 3.0
    assert not same(ends["reset"].tensors, ends["rescale"].tensors)


def test_more_strategies_than_these_are_not_built_in() -> None:
    tested = {method.strategy for method in (METHODS | RELAYS).values()} | {"erm", "fedadam"}
    elsewhere = {"mixup", "mixstyle"}  # tests/strategies: they need clients of several domains, and maps
    assert tested | elsewhere == set(BUILT_IN)


def test_fedadam_is_flowers_own(toy_run: Run) -> None:
    ours = toy_run(strategy="fedadam", strategy_args={"eta": 0.05}).tensors
    flowers = toy_run(strategy="flwr.serverapp.strategy:FedAdam", strategy_args={"eta": 0.05}).tensors
    assert same(ours, flowers)


def test_groupdro_weighs_the_domain_with_the_highest_loss_most(toy_run: Run) -> None:
    finished = toy_run(strategy="groupdro", strategy_args={"eta": 1.0}, rounds=1, batch_size=0)
    losses = {r["domain"]: r["train_loss"] for r in finished.rows if r["round"] == 1 and r["role"] == "source"}
    weights = finished.server.strategy.state_dict()
    assert max(losses, key=losses.__getitem__) == max(weights, key=lambda domain: float(weights[domain]))
    assert float(sum(weights.values())) == pytest.approx(1.0)
