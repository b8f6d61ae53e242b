"""Promises with many clients: order, restarts, resuming, drawing clients, memory."""

import gc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from crossing import crossed
from flwr.app import Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import METHODS, RELAYS
from toy import SOURCES, toy_config

from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.examples import local_client, simulated_client
from fedhess.federation.client.memory import Memory
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.protocol import Identity
from fedhess.federation.server.discovery import Client, draw_clients
from fedhess.models.building import build_model
from tests.promises.test_alive import KINDS, assert_undisturbed, run_of, same, server_of

Run = Callable[..., Any]
MIXED = {"partition": "lambda", "clients": 7, "heterogeneity": 0.5}
DRAWN = {"partition": "dirichlet", "clients_per_domain": 3, "dirichlet_min_size": 2, "clients_per_round": 4}
MANY = {
    "mixed": MIXED | {"clients": 5, "clients_per_round": 4},
    "drawn": DRAWN | {"clients_per_domain": 2},
    "one a domain": {},
}
ALL = METHODS | RELAYS


@pytest.mark.parametrize(("name", "many"), crossed(KINDS, MANY))
def test_node_ids_reply_order_forgetful_clients_and_a_resumed_server_change_nothing(
    toy_run: Run, name: str, many: str, tmp_path: Path
) -> None:
    args = run_of(ALL[name], dtype="float32", local_steps=2, **server_of(name)) | MANY[many]
    assert_undisturbed(toy_run, tmp_path / "run", **args)


@pytest.mark.slow  # of some the bits are compared above
@pytest.mark.parametrize("name", ALL)
def test_every_strategy_trains_drawn_clients_of_several_domains(toy_run: Run, name: str) -> None:
    finished = toy_run(**run_of(ALL[name], rounds=2), **MIXED, clients_per_round=2)
    assert all(torch.isfinite(value).all() for value in finished.tensors.values())
    assert not same(finished.tensors, dict(build_model(finished.server.config).state_dict()))
    assert all(row["accuracy"] is not None for row in finished.rows)


def test_the_seed_is_in_every_clients_stream_of_batches() -> None:
    for seed in (3, 4):
        config = toy_config(seed=seed, **MIXED)
        places = [simulated_client(config, position) for position in range(7)]
        clients = [local_client(config, domain=domain, role=SOURCE, client=number) for domain, number in places]
        keys = [part.key for client in clients for part in client.parts.values()]
        assert len(set(keys)) == len(keys) > 7, "some have examples of two domains"
        assert {key[0] for key in keys} == {seed}


def trained(rows: list[dict[str, Any]], server_round: int) -> list[tuple[str, int]]:
    mine = [row for row in rows if row["round"] == server_round and row["train_loss"] is not None]
    return [(row["domain"], row["client"]) for row in mine]


def test_a_round_draws_its_number_of_clients_anew_and_evaluates_all(toy_run: Run) -> None:
    rows = toy_run(**DRAWN, rounds=8).rows
    drawn = [trained(rows, number) for number in range(1, 9)]
    assert all(len(clients) == 4 for clients in drawn)
    assert len({tuple(clients) for clients in drawn}) > 4
    assert {client for clients in drawn for client in clients} == {(d, i) for d in SOURCES for i in range(3)}
    assert all(row["accuracy"] is not None for row in rows)


@settings(deadline=None)
@given(number=st.integers(0, 12), seed=st.integers(0, 50))
def test_drawing_knows_seed_and_round_and_no_node_ids(number: int, seed: int) -> None:
    def clients(first: int) -> list[Client]:
        return [Client(first - i, Identity("a", "source", i, 1, 1, True)) for i in range(9)]

    one, other = (
        [c.identity for c in draw_clients(clients(first), number, seed=seed, server_round=3)] for first in (99, 50)
    )
    assert one == other
    assert len(one) == (min(number, 9) or 9)
    assert [identity.client for identity in one] == sorted({identity.client for identity in one})


def test_every_client_is_drawn_as_often_as_every_other() -> None:
    clients = [Client(i, Identity("a", "source", i, 1, 1, True)) for i in range(8)]
    counts = [0] * 8
    for server_round in range(4000):
        for client in draw_clients(clients, 2, seed=0, server_round=server_round):
            counts[client.node_id] += 1
    assert all(abs(count - 1000) < 5 * 27.4 for count in counts)  # standard deviation sqrt(4000 * 1/4 * 3/4)


def test_fishr_keeps_the_average_of_a_domain_that_is_absent(toy_run: Run, tmp_path: Path) -> None:
    args = run_of(METHODS["fishr"], clients_per_round=1)
    states = []
    for rounds in (1, 2, 3, 4):
        finished = toy_run(**args, rounds=rounds, directory=tmp_path / "run")
        states.append(({d for d, _ in trained(finished.rows, rounds)}, finished.server.strategy.state_dict()))
    for (_, before), ((domain,), after) in pairwise(states):
        assert all(torch.equal(after[other], value) for other, value in before.items() if other != domain)
        assert domain not in before or not torch.equal(after[domain], before[domain])


@pytest.mark.parametrize("form", ["exponential", "projection"])
def test_groupdro_weights_stay_a_distribution_over_all_domains(toy_run: Run, form: str) -> None:
    args = {"strategy": "groupdro", "strategy_args": {"eta": 0.5, "form": form}, "clients_per_round": 1}
    for rounds in (1, 4):
        finished = toy_run(**args, rounds=rounds)
        weights = finished.server.strategy.state_dict()
        assert list(weights) == list(SOURCES)
        assert float(sum(weights.values())) == pytest.approx(1.0)
    first = toy_run(**args, rounds=1)
    ((domain, _),) = trained(first.rows, 1)
    weights = first.server.strategy.state_dict()
    (others,) = {float(value) for name, value in weights.items() if name != domain}
    assert float(weights[domain]) > others


def test_a_round_whose_survivors_weigh_nothing_does_not_move_the_model(toy_run: Run) -> None:
    class Gone:
        """The clients that AFL gives all the weight to fail in training."""

        heavy: tuple[int, ...] = ()

        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] in self.heavy:
                raise OSError("gone")
            return client_app(message, context)

    args = {"strategy": "groupdro", "strategy_args": {"eta": 99.0, "form": "projection"}, "rounds": 1, "quorum": 1}
    weights = toy_run(**args).server.strategy.state_dict()
    app = Gone()
    app.heavy = tuple(SOURCES.index(domain) for domain, weight in weights.items() if float(weight) > 0)
    assert 0 < len(app.heavy) < 3
    finished = toy_run(app=app, **args)
    assert same(finished.tensors, dict(build_model(finished.server.config).state_dict()))


def test_the_grid_keeps_no_reply(toy_run: Run) -> None:
    grids: list[InProcessGrid] = []

    def wrap(grid: InProcessGrid) -> InProcessGrid:
        grids.append(grid)
        return grid

    toy_run(wrap=wrap, **MIXED, rounds=1)
    gc.collect()
    assert [node.running for node in grids[0]._nodes.values()] == [None] * 8
    assert not grids[0]._pending
    assert not grids[0]._running


def test_the_server_sends_to_a_bounded_number_at_once(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessGrid, "clients_at_once", 3)
    waiting: list[int] = []

    class Counting(InProcessGrid):
        def _reply(self, message_id: str, wait: float | None) -> Message | None:
            waiting.append(len(self._pending))
            return super()._reply(message_id, wait)

    def wrap(grid: InProcessGrid) -> InProcessGrid:
        grid.__class__ = Counting
        return grid

    args = run_of(METHODS["hgp-alpha"], rounds=2) | MIXED
    bounded = toy_run(wrap=wrap, **args)
    assert max(waiting[8:]) == 3, "after all were asked who they are"
    monkeypatch.setattr(InProcessGrid, "clients_at_once", 100)
    assert same(bounded.tensors, toy_run(**args).tensors)


def test_few_forward_passes_are_kept_and_the_bits_are_the_same(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    args = run_of(METHODS["hgp-alpha"], dtype="float32", rounds=2) | MIXED
    whole = toy_run(**args)
    kept: list[int] = []
    weights: list[int] = []
    keep = Memory.keep

    def counted(self: Memory, *arguments: Any) -> None:
        keep(self, *arguments)
        kept.append(len(self._passes))
        weights.extend(self._sizes(with_graph=True))

    monkeypatch.setattr(Memory, "keep", counted)
    # In float32 a pass has 16 x 390 features, 25 kB; its graph holds them, the activations before, and the inputs.
    graph = 4 * 16 * (390 + 390 + 12)
    for graphs, size, most in ((2**32, 0, 7), (4 * graph, 0, 4), (0, 0, 1), (0, 100_000, 5)):
        monkeypatch.setattr(Memory, "GRAPH_BYTES", graphs)
        monkeypatch.setattr(Memory, "FEATURE_BYTES", size)
        memory.MEMORY.clear()
        kept.clear()
        assert same(whole.tensors, toy_run(**args).tensors)
        assert max(kept) == most
        assert set(weights) == {graph}


def test_target_rows_and_the_firewall_are_as_they_were(toy_run: Run) -> None:
    rows = toy_run(**MIXED, rounds=1).rows
    targets = [row for row in rows if row["role"] == "target"]
    key = ("domain", "client", "split", "examples")
    assert [tuple(row[name] for name in key) for row in targets] == [("east", 0, "all", 48)] * 2
