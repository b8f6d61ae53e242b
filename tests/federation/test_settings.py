"""Each setting of a run does what it says, against arithmetic done by hand or a centralised run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from centralised import cross_entropy, hgp_objective, train_centrally
from flwr.app import Context, Message
from methods import METHODS
from torch import Tensor
from toy import toy_config, toy_domains

from fedhess import protocol
from fedhess.client import app as client_app
from fedhess.local_data import build_model
from fedhess.models.headed import HeadedModel

Run = Callable[..., Any]


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


@pytest.mark.parametrize("local_steps", [1, 3])
def test_learning_rate_falls_to_a_tenth_after_a_share_of_the_rounds(toy_run: Run, local_steps: int) -> None:
    settings = {"sources": ("north",), "batch_size": 0, "local_steps": local_steps, "rounds": 5}
    federated = toy_run(**settings, lr_drop_after=0.8).tensors
    config = toy_config(batch_size=0)
    model = build_model(config)
    inputs, labels = toy_domains()["north"]
    for step in range(5 * local_steps):
        lr = config.lr if step < 4 * local_steps else config.lr / 10
        loss = cross_entropy(model, (inputs, labels))
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, [*model.parameters()]), strict=True
        ):
            parameter.data -= lr * gradient
    for name, tensor in model.state_dict().items():
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


def test_hgp_with_annealing_is_the_centralised_form(toy_run: Run) -> None:
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
