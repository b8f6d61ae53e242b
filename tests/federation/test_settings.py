"""Fishr's two ways to anneal, the falling learning rate, and probes: of a seed of the round that its domains share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from centralised import Round, erm_objective, fishr_objective, train_centrally
from domain_statistics import cross_entropy
from flwr.app import Context, Message
from methods import METHODS
from torch import Tensor
from toy import toy_config, toy_domains

from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel

Run = Callable[..., Any]


@pytest.mark.parametrize("annealing", ["reset", "rescale"])
def test_fishr_before_its_annealing_step_is_that_of_domainbed_or_of_the_script(toy_run: Run, annealing: str) -> None:
    """DomainBed: ERM that moves the averages, then Adam begins anew. The script: weight 1, then all of it divided."""
    settings = {"lr": 1.0, "server_optimizer": "Adam", "server_lr": 1e-2, "domains_options": {"classes": 2}}
    args = {"weight": 20.0, "anneal_steps": 6, "ema": 0.7, "annealing": annealing}
    config = toy_config(rounds=8, **settings)
    model = build_model(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps = iter(range(8))
    with_penalty = fishr_objective(1.0, 0.7)

    def objective(model: HeadedModel, now: Round) -> Tensor:
        step, loss, total = next(steps), erm_objective()(model, now), with_penalty(model, now)
        if step == 6 and annealing == "reset":
            optimizer.state.clear()
        if step < 6:
            return loss if annealing == "reset" else total
        return (loss + 20.0 * (total - loss)) / (1.0 if annealing == "reset" else 20.0)

    expected = train_centrally(model, toy_domains(classes=2), config=config, objective=objective, optimizer=optimizer)
    federated = toy_run(strategy="fishr", strategy_args=args, rounds=8, **settings).tensors
    for name, tensor in expected.items():
        torch.testing.assert_close(federated[name], tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize("local_steps", [1, 3])
def test_learning_rate_falls_to_a_tenth_after_a_share_of_the_rounds(toy_run: Run, local_steps: int) -> None:
    settings = {"sources": ("north",), "batch_size": 0, "local_steps": local_steps, "rounds": 5}
    federated = toy_run(**settings, lr_schedule="step").tensors
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
