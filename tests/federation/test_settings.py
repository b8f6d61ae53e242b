"""Each setting of a run does what it says, against arithmetic done by hand or a centralised run."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from centralised import cross_entropy, hgp_objective, train_centrally
from flwr.app import Context, Message, RecordDict
from methods import METHODS
from torch import Tensor, nn
from toy import SOURCES, toy_config

from fedhess import protocol, workplace
from fedhess.client import app as client_app
from fedhess.domains import open_benchmark
from fedhess.engines.flower_compat import run_identity, set_message_id
from fedhess.errors import FederationError
from fedhess.local_data import build_model, local_domain
from fedhess.models import MODELS
from fedhess.models.headed import HeadedModel
from fedhess.roster import discover
from fedhess.runs import RunDirectory
from fedhess.training import round_batch

Run = Callable[..., Any]


def toy_domains(**options: Any) -> dict[str, tuple[Tensor, Tensor]]:
    benchmark = open_benchmark("Toy", options=options)
    domains = {}
    for name in SOURCES:
        data = benchmark.load(name)
        domains[name] = (data.inputs(torch.arange(len(data))).double(), data.labels)
    return domains


def test_weighting_by_examples_is_the_mean_over_examples(toy_run: Run) -> None:
    changes = {"domains_options": {"uneven": True}, "batch_size": 0, "rounds": 5}
    weighted = toy_run(weighting="examples", **changes).tensors
    domains = toy_domains(uneven=True)
    inputs, labels = (torch.cat(parts) for parts in zip(*domains.values(), strict=True))
    config = toy_config(rounds=5, batch_size=0)
    model = build_model(config)
    expected = train_centrally(
        model,
        {"all": (inputs, labels)},
        config=config,
        objective=lambda model, batches: cross_entropy(model, batches[0]),
        optimizer=torch.optim.SGD(model.parameters(), lr=config.lr),
    )
    for name, value in expected.items():
        torch.testing.assert_close(weighted[name], value, rtol=0, atol=1e-10)
    equal = toy_run(weighting="domain", **changes).tensors
    assert (equal["head.weight"] - weighted["head.weight"]).abs().max() > 1e-5


def test_references_are_weighed_like_the_updates(toy_run: Run) -> None:
    changes = {"domains_options": {"uneven": True}, "batch_size": 0, "strategy": "hgp", "rounds": 1}
    ends = {}
    for weighting in ("domain", "examples"):
        finished = toy_run(weighting=weighting, strategy_args={"alpha": 0.0, "beta": 1.0}, **changes)
        rows = [row for row in finished.rows if row["round"] == 1 and row["role"] == "source"]
        ends[weighting] = [row["train_objective"] - row["train_loss"] for row in rows]
    assert ends["domain"] != pytest.approx(ends["examples"], rel=1e-6)


def test_statistics_batches_widen_the_reference(toy_run: Run) -> None:
    args = {"strategy": "hgp", "strategy_args": {"alpha": 0.0, "beta": 0.5}, "rounds": 1, "batch_size": 16}
    narrow, wide = (toy_run(statistics_batches=count, **args).rows for count in (1, 3))
    # Three batches of 16 are all 48 examples: the reference of the wide run is that of a full batch.
    gaps = {name: penalties(rows) for name, rows in (("narrow", narrow), ("wide", wide))}
    assert gaps["narrow"] != pytest.approx(gaps["wide"], rel=1e-3)
    config = toy_config(**args)
    model = build_model(config)
    full = [torch.autograd.grad(cross_entropy(model, batch), list(model.head.parameters()))
            for batch in toy_domains().values()]  # fmt: skip
    reference = torch.stack([torch.cat([w, b.unsqueeze(1)], 1) for w, b in full]).mean(0)
    from fedhess.sampling import batch_indices

    for (name, (inputs, labels)), gap in zip(toy_domains().items(), gaps["wide"], strict=True):
        chosen = batch_indices(48, batch_size=16, step=0, key=(config.seed, name, 0))
        weight, bias = torch.autograd.grad(
            cross_entropy(model, (inputs[chosen], labels[chosen])), list(model.head.parameters())
        )
        own = torch.cat([weight, bias.unsqueeze(1)], 1)
        assert gap == pytest.approx(0.5 * float((own - reference).square().sum()), rel=1e-9)


def penalties(rows: list[dict[str, Any]]) -> list[float]:
    return [row["train_objective"] - row["train_loss"] for row in rows if row["round"] == 1 and row["role"] == "source"]


@pytest.mark.parametrize("setting", ["l2", "weight_decay", "momentum"])
def test_regularisation_and_momentum_are_the_centralised_ones(toy_run: Run, setting: str) -> None:
    value = {"l2": 0.03, "weight_decay": 0.06, "momentum": 0.9}[setting]
    rounds = 1 if setting == "momentum" else 6  # momentum lives for one round of local steps
    steps = {"local_steps": 4} if setting == "momentum" else {}
    federated = toy_run(rounds=rounds, sources=("north", "south"), batch_size=0, **steps, **{setting: value}).tensors
    config = toy_config(rounds=rounds * steps.get("local_steps", 1), batch_size=0)
    domains = {name: toy_domains()[name] for name in ("north", "south")}

    def regularised(model: HeadedModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        return cross_entropy(model, batch) + (value * squares if setting == "l2" else 0.0)

    if setting == "momentum":  # each client alone, then the mean
        ends = []
        for name, examples in domains.items():
            model = build_model(config)
            optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=value)
            ends.append(
                train_centrally(
                    model,
                    {name: examples},
                    config=config,
                    objective=lambda model, batches: cross_entropy(model, batches[0]),
                    optimizer=optimizer,
                )
            )
        expected = {name: (ends[0][name] + ends[1][name]) / 2 for name in ends[0]}
    else:
        model = build_model(config)
        decay = value if setting == "weight_decay" else 0.0
        expected = train_centrally(
            model,
            domains,
            config=config,
            objective=lambda model, batches: torch.stack([regularised(model, batch) for batch in batches]).mean(),
            optimizer=torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=decay),
        )
    for name, tensor in expected.items():
        torch.testing.assert_close(federated[name], tensor, rtol=0, atol=1e-10)


def test_a_weight_above_one_divides_the_objective(toy_run: Run) -> None:
    args = {"alpha": 0.02, "beta": 0.05}
    plain = toy_run(strategy="hgp", strategy_args=args, rounds=1).rows
    heavy = toy_run(strategy="hgp", strategy_args=args | {"weight": 40.0}, rounds=1).rows
    for one, other in zip(plain, heavy, strict=True):
        if one["train_loss"] is not None:
            penalty = one["train_objective"] - one["train_loss"]
            expected = (one["train_loss"] + 40 * penalty) / 40
            assert other["train_objective"] == pytest.approx(expected, rel=1e-12)


def test_hgp_with_annealing_is_the_centralised_script(toy_run: Run) -> None:
    settings = {"rounds": 8, "lr": 1.0, "server_optimizer": "Adam", "server_lr": 1e-3}
    args = {"alpha": 0.02, "beta": 0.05, "weight": 50.0, "anneal_steps": 3}
    federated = toy_run(strategy="hgp", strategy_args=args, **settings).tensors
    config = toy_config(**settings)
    model = build_model(config)
    steps = iter(range(8))

    def objective(model: HeadedModel, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        weight = 50.0 if next(steps) >= 3 else 1.0
        weighed = hgp_objective(0.02 * weight, 0.05 * weight, "hgp_of_mean")(model, batches)
        return weighed / max(1.0, weight)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    expected = train_centrally(model, toy_domains(), config=config, objective=objective, optimizer=optimizer)
    for name, tensor in expected.items():
        torch.testing.assert_close(federated[name], tensor, rtol=0, atol=1e-10)


def test_each_round_draws_its_own_probes_and_all_domains_the_same(toy_run: Run) -> None:
    seeds: list[tuple[int, int]] = []

    class Listening:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.STATISTICS:
                given = message.content.config_records[protocol.GIVEN_SCALARS]
                seeds.append((int(message.metadata.group_id), int(given["seed"])))  # type: ignore[arg-type]
            return client_app(message, context)

    toy_run(strategy="hutchinson", strategy_args=METHODS["hutchinson-probes"].args, app=Listening())
    by_round = {number: {seed for n, seed in seeds if n == number} for number, _ in seeds}
    assert [len(values) for values in by_round.values()] == [1, 1, 1]
    assert len(set.union(*by_round.values())) == 3


def test_a_node_that_plays_another_role_than_the_run_gives_it_is_an_error(toy_run: Run) -> None:
    class Stubborn:
        def __call__(self, message: Message, context: Context) -> Message:
            if context.node_config["partition-id"] == 1:
                context.node_config["role"] = "target"
            return client_app(message, context)

    with pytest.raises(FederationError, match="client south: the run has it as source, the node says target"):
        toy_run(app=Stubborn())


def test_a_domain_may_weigh_nothing(toy_run: Run) -> None:
    finished = toy_run(strategy="groupdro", strategy_args={"eta": 20.0, "form": "projection"})
    weights = [float(value) for value in finished.server.strategy.state_dict().values()]
    assert 0.0 in weights
    assert sum(weights) == pytest.approx(1.0)
    assert all(torch.isfinite(value).all() for value in finished.tensors.values())


def test_groupdro_survives_any_step(toy_run: Run) -> None:
    finished = toy_run(strategy="groupdro", strategy_args={"eta": 1e6}, rounds=2)
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
    class TwoFail:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] > 0:
                raise OSError("gone")
            return client_app(message, context)

    args = {"strategy": "flwr.serverapp.strategy:FedAvg", "strategy_args": {"fraction_train": 0.7}}
    with pytest.raises(FederationError, match="of 2 source clients completed phase 'train', 2 are needed"):
        toy_run(app=TwoFail(), rounds=4, **args)


def test_more_batches_than_examples_are_those_batches_and_no_others(toy_run: Run) -> None:
    data = local_domain(toy_config(batch_size=20), domain="north", role="source")
    inputs, labels = round_batch(data, toy_config(batch_size=20), step=0, batches=3)
    singles = [round_batch(data, toy_config(batch_size=20), step=step)[0] for step in range(3)]
    assert len(inputs) == len(labels) == 60
    assert torch.equal(inputs, torch.cat(singles))


class FixedNodes:
    """As much of a grid as discovery needs: nodes that say who they are."""

    def __init__(self, identities: dict[int, protocol.Identity]) -> None:
        self.identities = identities

    def get_node_ids(self) -> list[int]:
        return list(self.identities)

    def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
        del timeout
        replies = []
        for number, message in enumerate(messages):
            set_message_id(message, str(number))
            identity = self.identities[message.metadata.dst_node_id]
            replies.append(Message(RecordDict({protocol.CONFIG: identity.to_record()}), reply_to=message))
        return replies


def test_two_nodes_of_one_domain_are_an_error() -> None:
    north, south = (protocol.Identity(name, "source", 0, 10, 10, False) for name in ("north", "south"))
    with run_identity(1):
        found = discover(FixedNodes({9: south, 4: north}), sources=("north", "south"), targets=(), deadline=5)  # type: ignore[arg-type]
        assert [(client.label, client.node_id) for client in found] == [("north", 4), ("south", 9)]
        with pytest.raises(FederationError, match="two nodes say that they are client south"):
            discover(FixedNodes({1: north, 2: south, 3: south}), sources=("north", "south"), targets=(), deadline=5)  # type: ignore[arg-type]


def test_a_node_that_is_slow_to_start_is_asked_again(toy_run: Run) -> None:
    asked: list[int] = []

    class Booting:
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == protocol.IDENTIFY and context.node_config["partition-id"] == 1:
                asked.append(1)
                if len(asked) == 1:
                    raise OSError("still booting")
            return client_app(message, context)

    assert len(toy_run(app=Booting(), rounds=1).rows) == 8
    assert len(asked) == 2


class Normed(nn.Module):
    """A featurizer whose batch norm is not frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 8), nn.BatchNorm1d(8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.linear(inputs))


def make_normed(*, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
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
        workplace.forget_everything()
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
