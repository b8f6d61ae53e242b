"""``references="previous"``: one exchange a round, references of the round before, nothing lost on the way."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from centralised import Objective, Pull, Round, pulled, train_centrally
from crossing import sampled
from domain_statistics import head_gradient_of, hgp_of, products_of
from flwr.app import Context, Message
from flwr.serverapp import Grid
from methods import METHODS
from torch import Tensor
from toy import FIVE, toy_config, toy_domains

from fedhess.alignment.strategy import Ask
from fedhess.curvature import head_gradient
from fedhess.federation import protocol
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.memory import Memory
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.models import MODELS
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel
from fedhess.strategies.fish import Fish
from tests.promises.test_alive import KINDS, erm_with

Run = Callable[..., Any]
ALPHA, BETA = 0.02, 0.05
HGP = {
    "strategy": "hgp",
    "strategy_args": {"alpha": ALPHA, "beta": BETA, "scale": "absolute"},
    "references": "previous",
}


def stale_hgp(alpha: float, beta: float) -> Objective:
    """Mean of L_e + alpha ||H_e g_e - h||^2 + beta ||g_e - g||^2 with g and h from the step before.

    g is the mean gradient of the step before; h the mean of its Hessians times the mean gradient that was known *then*.
    The first step is that of the exact form.
    """
    past: list[tuple[Tensor, Tensor]] = []  # (mean gradient, mean of H_e[v]) of each step, v: what was known
    known: list[Tensor] = []  # the reference gradient of each step

    def objective(model: HeadedModel, now: Round) -> Tensor:
        gradient = now.mean(now.of(model, head_gradient_of)).detach()
        known.append(past[-1][0] if past else gradient)
        vector = known[-1].unsqueeze(0)
        product = now.mean(products_of(model, batch, vector)[0] for batch in now.batches.values()).detach()
        g, h = past[-1] if past else (gradient, product)
        past.append((gradient, product))
        pulls = [Pull(alpha, hgp_of, lambda *_: h), Pull(beta, head_gradient_of, lambda *_: g)]
        return pulled(lambda _: pulls)(model, now)

    return objective


@pytest.mark.parametrize(
    ("optimizer", "sources", "weighting"),
    [("SGD", FIVE[:3], "domain"), ("Adam", FIVE[:4], "examples"), ("Adam", FIVE, "domain")],
)
def test_a_run_equals_the_centralised_algorithm_with_references_one_step_old(
    toy_run: Run, optimizer: str, sources: tuple[str, ...], weighting: str
) -> None:
    server = {"rounds": 8, "evaluate_every": 8, "server_optimizer": optimizer, "server_lr": 0.01, "lr": 1.0}
    server |= {"sources": sources, "weighting": weighting, "domains_options": {"six": True, "uneven": True}}
    finished = toy_run(**HGP, **server).tensors
    config = toy_config(**HGP, **server)
    model = build_model(config)
    expected = train_centrally(
        model,
        toy_domains(sources, **config.domains_options),
        config=config,
        objective=stale_hgp(ALPHA, BETA),
        optimizer=getattr(torch.optim, optimizer)(model.parameters(), lr=0.01),
    )
    for name, value in expected.items():
        torch.testing.assert_close(finished[name], value, rtol=1e-10, atol=1e-10)
    exact = toy_run(**HGP | {"references": "current"}, **server).tensors
    gap = max(float((exact[name] - finished[name]).abs().max()) for name in exact)
    assert gap > 1e-6, "the approximation is one"


class Counting:
    """The real ClientApp, counting the messages of each type by round."""

    def __init__(self) -> None:
        self.seen: dict[int, list[str]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        content = message.content.config_records.get(protocol.CONFIG, {})
        self.seen.setdefault(int(content.get(protocol.ROUND, 0)), []).append(message.metadata.message_type)
        return client_app(message, context)


def test_a_round_is_one_exchange_but_for_the_first_which_is_that_of_the_exact_form(toy_run: Run) -> None:
    counting = Counting()
    toy_run(app=counting, **HGP, rounds=3, evaluate_every=3)
    assert [counting.seen[number].count(protocol.STATISTICS) for number in (1, 2, 3)] == [6, 0, 0]
    assert [counting.seen[number].count(protocol.TRAIN) for number in (1, 2, 3)] == [3, 3, 3]
    first = {"rounds": 1}
    stale, exact = toy_run(**HGP, **first).tensors, toy_run(**HGP | {"references": "current"}, **first).tensors
    assert all(torch.equal(stale[name], exact[name]) for name in exact)


@pytest.mark.parametrize("method", sampled((name for name, method in METHODS.items() if method.neutral), KINDS))
def test_every_method_runs_on_old_references_and_is_erm_where_it_is_neutral(toy_run: Run, method: str) -> None:
    entry = METHODS[method]
    settings = {"strategy": entry.strategy, "references": "previous", "rounds": 3, "evaluate_every": 3, **entry.changes}
    counting = Counting()
    used = toy_run(app=counting, strategy_args=entry.args, **settings).tensors
    neutral = toy_run(strategy_args=entry.neutral, **settings).tensors
    erm = erm_with(toy_run, rounds=3, evaluate_every=3, **entry.changes)
    assert all(torch.equal(neutral[name], erm[name]) for name in erm)
    assert any(not torch.equal(used[name], erm[name]) for name in erm)
    asked = 3 if entry.strategy == "ga" else 0  # what the last mean is worth, not for a reference
    assert [counting.seen[number].count(protocol.STATISTICS) for number in (2, 3)] == [asked, asked]


class Away:
    """The real ClientApp, except that the client of one domain fails in training in one round.

    Args:
        server_round: The round.
        forgetful: Whether clients forget everything before each message, as deployed ones do.
    """

    def __init__(self, server_round: int, *, forgetful: bool = False) -> None:
        self.server_round, self.forgetful, self.asked = server_round, forgetful, Counting()

    def __call__(self, message: Message, context: Context) -> Message:
        if self.forgetful:
            memory.MEMORY.clear()
        config = message.content.config_records.get(protocol.CONFIG, {})
        training = message.metadata.message_type == protocol.TRAIN
        if training and context.node_config["partition-id"] == 1 and config[protocol.ROUND] == self.server_round:
            raise OSError("on the train")
        return self.asked(message, context)


@pytest.mark.parametrize("strategy", ["hgp", "fishr"])
def test_a_client_that_was_away_is_asked_when_it_is_back(toy_run: Run, strategy: str) -> None:
    app = Away(2)
    args = METHODS["fishr"].args if strategy == "fishr" else HGP["strategy_args"]
    finished = toy_run(
        app=app, strategy=strategy, strategy_args=args, references="previous", quorum=2, rounds=4, evaluate_every=4
    )
    asked = [app.asked.seen[number].count(protocol.STATISTICS) for number in (2, 3, 4)]
    assert asked == [0, 2 if strategy == "hgp" else 1, 0], "it alone, once for each exchange of the strategy"
    assert [row["failures"][0]["round"] for row in finished.rows if row["failures"]] == [2]


MIXED = {"partition": "lambda", "clients": 7, "heterogeneity": 0.5}
DRAWN = {"partition": "dirichlet", "clients_per_domain": 3, "dirichlet_min_size": 2, "clients_per_round": 4}
SEVERAL_STEPS = {"local_steps": 2, "momentum": 0.9, "statistics_batches": 2}


@pytest.mark.parametrize(
    ("steps", "many", "away"),
    [
        pytest.param({"local_steps": 2}, {}, 2, marks=pytest.mark.slow),
        pytest.param({"local_steps": 2}, DRAWN, 2, marks=pytest.mark.slow),
        (SEVERAL_STEPS, MIXED, 2),
        pytest.param(SEVERAL_STEPS, DRAWN, 0, marks=pytest.mark.slow),
    ],
    ids=["one a domain", "drawn", "momentum, mixed", "momentum, drawn, all there"],
)
def test_local_steps_and_forgetful_clients_change_nothing(
    toy_run: Run, steps: dict[str, Any], many: dict[str, Any], away: int
) -> None:
    settings = {
        **HGP,
        **many,
        **steps,
        "rounds": 4,
        "evaluate_every": 4,
        "quorum": 2,
        "domains_options": {"examples": 96},
    }
    straight = toy_run(app=Away(away), **settings).tensors
    forgetful = toy_run(app=Away(away, forgetful=True), **settings).tensors
    assert all(torch.equal(straight[name], forgetful[name]) for name in straight)


FEDSAM = {"strategy": "hgp+fedsam", "strategy_args": {"hgp_alpha": ALPHA, "hgp_scale": "absolute"}}


@pytest.mark.parametrize(("steps", "changes"), [(1, {}), (2, {}), (1, FEDSAM), (1, FEDSAM | {"references": "current"})])
def test_dropout_draws_the_same_whatever_a_client_remembers(
    toy_run: Run, steps: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "dropping", "toy:create_dropping")
    settings = {**HGP, **changes, "model": "dropping", "local_steps": steps, "evaluate_every": 3}
    straight = toy_run(**settings).tensors
    forgetful = toy_run(app=Away(0, forgetful=True), **settings).tensors
    monkeypatch.setattr(Memory, "GRAPH_BYTES", -1)  # of a model the first client's pass alone
    monkeypatch.setattr(Memory, "FEATURE_BYTES", 0)
    small = toy_run(**settings).tensors
    for found in (forgetful, small):
        assert all(torch.equal(straight[name], found[name]) for name in straight)


@pytest.mark.parametrize("name", sampled((name for name, method in METHODS.items() if method.has_reference), KINDS))
def test_where_nothing_moves_identical_domains_have_no_penalty(toy_run: Run, name: str) -> None:
    method = METHODS[name]
    still = {"server_lr": 1e-12, "rounds": 3, "batch_size": 0, "domains_options": {"identical": True}}
    settings = {"strategy": method.strategy, "strategy_args": method.args, **method.changes, **still}
    old, exact = (
        [row["train_objective"] for row in toy_run(references=form, **settings).rows if row["train_loss"]]
        for form in ("previous", "current")
    )
    assert old == pytest.approx(exact, abs=1e-9)
    assert len(old) == 9


class AskingFish(Fish):
    """A relay that asks for a statistic besides."""

    statistics = {"gradient": head_gradient}  # noqa: RUF012 - as DomainStrategy has it

    def reference(self, ask: Ask) -> dict[str, Tensor]:
        ask("gradient")
        return {}


def test_models_of_a_relay_answer_for_no_statistic(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asking", sys.modules[__name__])
    counting = Counting()
    toy_run(app=counting, strategy="asking:AskingFish", references="previous", rounds=3, evaluate_every=3)
    asked = [counting.seen[number].count(protocol.STATISTICS) for number in (1, 2, 3)]
    assert asked == [3, 0, 3], "what the first exchange brought serves the second round; no relay brings anything"


class Stopped(Exception):
    pass


def stops_in_round(server_round: int) -> Callable[[Grid], Grid]:
    """Make a grid that fails when the train messages of a round are sent."""

    def wrap(grid: Grid) -> Grid:
        send = grid.send_and_receive

        def stop(messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            asked = list(messages)
            of_round = asked[0].metadata.group_id == str(server_round)
            if asked[0].metadata.message_type == protocol.TRAIN and of_round:
                raise Stopped
            return send(asked, timeout=timeout)

        grid.send_and_receive = stop  # type: ignore[method-assign]
        return grid

    return wrap


@pytest.mark.parametrize("strategy", ["hgp", "fishr"])
def test_a_resumed_run_continues_with_the_same_bits(toy_run: Run, strategy: str, tmp_path: Path) -> None:
    args = METHODS["fishr"].args if strategy == "fishr" else HGP["strategy_args"]
    settings = {"strategy": strategy, "strategy_args": args, "references": "previous", "rounds": 5}
    straight = toy_run(**settings).tensors

    with pytest.raises(Stopped):
        toy_run(directory=tmp_path, wrap=stops_in_round(4), **settings)
    assert RunDirectory(tmp_path).completed_round() == 3
    counting = Counting()
    resumed = toy_run(directory=tmp_path, app=counting, **settings).tensors
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert protocol.STATISTICS not in counting.seen[4], "what round 3 brought is in the checkpoint"


@pytest.mark.parametrize("many", [MIXED, DRAWN], ids=["mixed", "drawn"])
def test_clients_of_several_domains_and_drawn_clients_use_old_references_too(
    toy_run: Run, many: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**HGP, **many, "rounds": 3, "domains_options": {"examples": 96}}
    counting = Counting()
    straight = toy_run(app=counting, **settings).tensors
    asked = [counting.seen[number].count(protocol.STATISTICS) for number in (1, 2, 3)]
    if many is MIXED:
        assert asked == [14, 0, 0]
    else:
        assert asked[0] == 8
        assert all(number < 8 for number in asked[1:]), "who was drawn in the round before need not be asked"
    with pytest.raises(Stopped):
        toy_run(directory=tmp_path, wrap=stops_in_round(3), **settings)
    resumed = toy_run(directory=tmp_path, **settings).tensors
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    exact = toy_run(**settings | {"references": "current"}).tensors
    assert any(not torch.equal(straight[name], exact[name]) for name in exact)


def test_a_reply_without_its_statistics_is_named(toy_run: Run) -> None:
    class Tightlipped:
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            if message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] == 1:
                for key in [key for key in reply.content if key.startswith(protocol.CALL)]:
                    del reply.content[key]
            return reply

    finished = toy_run(app=Tightlipped(), quorum=2, **HGP | {"rounds": 2})
    (reason,) = {failure["reason"] for row in finished.rows for failure in row["failures"]}
    assert reason == "expected 2 answers about statistics in the reply, got 0"
