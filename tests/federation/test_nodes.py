"""Who takes part, what the server computes from them, and models whose forward passes leave traces."""

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from methods import METHODS
from misbehaving import Misbehaving, crash
from torch import Tensor, nn
from toy import toy_config, toy_domains

from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client import call, memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.app import return_nonce
from fedhess.federation.flower_compat import run_identity, set_message_id
from fedhess.federation.server.discovery import discover
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.models import MODELS
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel

Run = Callable[..., Any]
HGP = {"strategy": "hgp", "strategy_args": {"alpha": 0.02, "beta": 0.05}}


def test_a_node_that_plays_another_role_than_the_run_gives_it_is_an_error(toy_run: Run) -> None:
    class Stubborn:
        def __call__(self, message: Message, context: Context) -> Message:
            if context.node_config["partition-id"] == 1:
                context.node_config["role"] = "target"
            return client_app(message, context)

    with pytest.raises(FederationError, match="client south: the run has it as source, the node as target"):
        toy_run(app=Stubborn())


def test_a_server_needs_no_gpu_and_a_client_without_the_runs_is_named(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FederationError, match=r"node 1001: --device cuda: torch sees 0 CUDA device\(s\)"):
        toy_run(device="cuda")


def test_a_domain_may_weigh_nothing(toy_run: Run) -> None:
    finished = toy_run(strategy="groupdro", strategy_args={"eta": 20.0, "form": "projection"})
    weights = [float(value) for value in finished.server.strategy.state_dict().values()]
    assert 0.0 in weights
    assert sum(weights) == pytest.approx(1.0)
    assert all(torch.isfinite(value).all() for value in finished.tensors.values())


def test_a_model_that_the_server_makes_infinite_is_not_recorded(toy_run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(FederationError, match=r"the server's step \(SGD, erm\) left .* not finite"):
        toy_run(server_lr=1e308, lr=1e3, rounds=3, directory=directory)
    assert all(
        torch.isfinite(value).all()
        for value in RunDirectory(directory).load_checkpoint().tensors.values()  # type: ignore[union-attr]
    )


def test_the_quorum_holds_for_the_clients_that_a_flower_strategy_samples(toy_run: Run) -> None:
    args = {"strategy": "flwr.serverapp.strategy:FedAvg", "strategy_args": {"fraction_train": 0.7}}
    with pytest.raises(FederationError, match="of 2 source clients completed phase 'train', 2 are needed"):
        toy_run(app=Misbehaving(protocol.TRAIN, crash, partitions=[1, 2]), rounds=4, **args)


def test_a_late_thread_that_evicts_every_model_takes_none_from_a_client_at_work(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = toy_run(**HGP).tensors
    opened = call.local_client

    def disturbed(*given: Any, **where: Any) -> Any:
        for late in ("late", "later"):  # as many as the store keeps
            thread = threading.Thread(target=memory.MEMORY.receive, args=(late, ArrayRecord()))
            thread.start()
            thread.join()
        return opened(*given, **where)

    monkeypatch.setattr(call, "local_client", disturbed)
    finished = toy_run(**HGP)
    assert finished.server.federation.ledger.failures == []
    assert all(torch.equal(finished.tensors[name], undisturbed[name]) for name in undisturbed)


class FixedNodes:
    """As much of a grid as discovery needs: nodes that say who they are."""

    def __init__(self, identities: dict[int, protocol.Identity]) -> None:
        self.identities = identities
        self.pushed: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.identities)

    def push_messages(self, messages: list[Message]) -> list[str]:
        for message in messages:
            set_message_id(message, str(len(self.pushed)))
            self.pushed[message.metadata.message_id] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        answers = [self.answer(self.pushed[message_id]) for message_id in message_ids]
        return [reply for reply in answers if reply is not None]

    def answer(self, message: Message) -> Message | None:
        identity = self.identities[message.metadata.dst_node_id]
        reply = Message(RecordDict({protocol.CONFIG: identity.to_record()}), reply_to=message)
        return return_nonce(message, None, lambda *_: reply)  # type: ignore[arg-type]


def test_two_nodes_of_one_domain_are_an_error() -> None:
    north, south = (protocol.Identity(name, "source", 0, 10, 10, False) for name in ("north", "south"))
    with run_identity(1):
        found = discover(FixedNodes({9: south, 4: north}), toy_config(sources=("north", "south"), targets=()))  # type: ignore[arg-type]
        assert [(client.label, client.node_id) for client in found] == [("north", 4), ("south", 9)]
        with pytest.raises(FederationError, match="two nodes are client south"):
            discover(FixedNodes({1: north, 2: south, 3: south}), toy_config(sources=("north", "south"), targets=()))  # type: ignore[arg-type]


def test_a_node_that_is_slow_to_start_is_asked_again(toy_run: Run) -> None:
    asked: list[int] = []

    def booting(message: Message, reply: Message) -> Message:
        asked.append(1)
        return crash(message, reply) if len(asked) == 1 else reply

    assert len(toy_run(app=Misbehaving(protocol.IDENTIFY, booting, first_round=0), rounds=1).rows) == 8
    assert len(asked) == 2


class Normed(nn.Module):
    """A featurizer whose batch norm is not frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 8), nn.BatchNorm1d(8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.linear(inputs))


def make_normed(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    return HeadedModel(Normed(), nn.Linear(8, outputs))


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("normed_model")
    module.make_normed = make_normed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "normed_model", module)
    monkeypatch.setitem(MODELS, "normed", "normed_model:make_normed")
    return "normed"


class Amnesia:
    def __call__(self, message: Message, context: Context) -> Message:
        memory.MEMORY.clear()
        return client_app(message, context)


@pytest.mark.parametrize("steps", [1, 3])
def test_running_statistics_are_counted_once_and_averaged(toy_run: Run, normed: str, steps: int) -> None:
    changes = {"model": normed, "local_steps": steps, "rounds": 2}
    erm = toy_run(strategy="erm", **changes).tensors
    assert int(erm["featurizer.norm.num_batches_tracked"]) == 2 * steps
    args = METHODS["hgp-beta"].args
    hgp = toy_run(strategy="hgp", strategy_args=args, **changes).tensors
    assert int(hgp["featurizer.norm.num_batches_tracked"]) == 2 * steps
    forgetful = toy_run(strategy="hgp", strategy_args=args, app=Amnesia(), **changes).tensors
    assert all(torch.equal(hgp[name], forgetful[name]) for name in hgp)
    one = toy_run(strategy="erm", model=normed, rounds=1, batch_size=0).tensors
    start = build_model(toy_config(model=normed))
    means = [start.featurizer.linear(inputs).mean(0) for inputs, _ in toy_domains().values()]
    expected = 0.1 * torch.stack(means).mean(0)  # momentum 0.1 from zero, averaged over the domains
    torch.testing.assert_close(one["featurizer.norm.running_mean"], expected, rtol=0, atol=1e-12)
