"""A private run, from its first message to its rows: what leaves a source client, what it has spent, what it learns."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from federations import Finished
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from misbehaving import Misbehaving, crash
from toy import toy_config

from fedhess.alignment import Ask, DomainStrategy
from fedhess.base.errors import FederationError, UsageError
from fedhess.curvature import head_gradient
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.client.app import app
from fedhess.federation.client.batches import round_batch
from fedhess.federation.client.examples import local_client, simulated_client
from fedhess.federation.client.privacy import private_identity
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.server.global_model import GlobalModel
from fedhess.models.building import build_model

Run = Callable[..., Finished]
PRIVATE: dict[str, Any] = {
    "dp_epsilon": 8.0,
    "dp_delta": 1e-5,
    "dp_clip": {"update": 0.1, "statistics": 1.0},
    "domains_options": {"holdout": 0.25},
}
# So little noise and such wide bounds that nothing changes but rounding.
NEXT_TO_NOTHING = PRIVATE | {"dp_epsilon": 1e26, "dp_clip": {"update": 1e3, "statistics": 1e3}}


class Greedy(DomainStrategy):
    """Asks for more from its second round on than it did in the first."""

    statistics: ClassVar = {"gradient": head_gradient}

    def reference(self, ask: Ask) -> dict[str, torch.Tensor]:
        ask("gradient")
        if ask.server_round > 1:
            ask("gradient")
        return {}


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 5},
        {"split": "every", "partition": "dirichlet", "clients_per_domain": 2, "dirichlet_min_size": 2},
        {"split": "domainbed", "partition": "lambda", "clients": 4, "heterogeneity": 0.5, "local_epochs": 1},
    ],
    ids=["domain", "dirichlet", "lambda"],
)
@pytest.mark.parametrize("drawings", [0, 5])
def test_another_example_of_a_class_and_drawing_is_one_row_of_a_batch_at_most(
    changes: dict[str, Any], drawings: int
) -> None:
    """Neighbours by --dp-unit example: who holds what, and every batch, is the same but for the example itself."""
    options = {"holdout": 0.25, "drawings": drawings}
    here, there = (toy_config(**changes, domains_options=options | {"replaced": row}) for row in (-1, 2))
    moved = 0
    for position in range(here.source_clients):
        domain, client = simulated_client(here, position)
        assert simulated_client(there, position) == (domain, client)
        mine, other = (local_client(c, domain=domain, role=SOURCE, client=client) for c in (here, there))
        assert (mine.train_size, list(mine.parts)) == (other.train_size, list(other.parts))
        for name in mine.training_parts:
            for step in range(8):
                rows, replaced = (
                    round_batch(own.parts[name], config, step=step) for own, config in ((mine, here), (other, there))
                )
                assert torch.equal(rows[1], replaced[1])
                differs = (rows[0] != replaced[0]).any(1)
                assert differs.sum() <= 1
                moved += int(differs.sum())
    assert moved > 0


@pytest.mark.parametrize("strategy", ["erm", "hgp"])
def test_rows_say_what_each_source_has_spent_and_nothing_that_it_did_not_send(toy_run: Run, strategy: str) -> None:
    run = toy_run(strategy=strategy, rounds=3, **PRIVATE)
    sources = [row for row in run.rows if row["role"] == "source"]
    spent = [row["epsilon"] for row in sources if row["domain"] == "south"]
    assert spent == sorted(spent)
    assert (spent[0], spent[3]) == (0.0, pytest.approx(8.0))
    assert {row["noise"] for row in sources} == {"seed"}
    unknown = ("accuracy", "loss", "confusion", "gradient_distance", "train_loss", "train_objective")
    assert all(row[key] is None for row in sources for key in unknown)
    targets = [row for row in run.rows if row["role"] == "target"]
    assert all(row["accuracy"] is not None and "epsilon" not in row for row in targets)


@pytest.mark.parametrize(
    ("strategy", "unit", "changes"),
    [
        ("erm", "client", {"local_steps": 3}),
        ("hgp", "example", {}),
        ("hutchinson", "example", {"references": "previous"}),
        ("iga", "client", {"strategy_args": {"coefficient": 0.01}}),
        ("hgp", "client", {"partition": "lambda", "clients": 4, "heterogeneity": 0.7}),
    ],
)
def test_with_next_to_no_noise_a_private_run_is_the_run(
    toy_run: Run, strategy: str, unit: str, changes: dict[str, Any]
) -> None:
    plain = toy_run(strategy=strategy, domains_options=PRIVATE["domains_options"], **changes).tensors
    private = toy_run(strategy=strategy, **NEXT_TO_NOTHING, dp_unit=unit, **changes).tensors
    for name, value in plain.items():
        torch.testing.assert_close(private[name], value, rtol=0, atol=1e-7)


def test_noise_reaches_the_model_and_is_the_seeds(toy_run: Run) -> None:
    first, again = (toy_run(strategy="hgp", **PRIVATE).tensors for _ in range(2))
    plain = toy_run(strategy="hgp", domains_options=PRIVATE["domains_options"]).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.allclose(first["head.weight"], plain["head.weight"], atol=0.1)


def test_clients_that_sit_rounds_out_have_spent_less(toy_run: Run) -> None:
    rows = toy_run(rounds=3, clients_per_round=1, **PRIVATE).rows
    spent = [row["epsilon"] for row in rows if row["role"] == "source" and row["round"] == 3]
    assert min(spent) < max(spent) <= 8.0


def test_a_client_is_asked_for_no_more_than_there_is_noise_for(toy_run: Run) -> None:
    with pytest.raises(FederationError, match=r"clients north, south, west: not asked: --dp-epsilon has noise for 4"):
        toy_run(strategy=f"{__name__}:Greedy", rounds=3, **PRIVATE)


def test_clients_refuse_momentum_that_is_handed_on_whatever_the_server_checks(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhess.federation.server.app.check_training", lambda configs: None)
    monkeypatch.setattr("fedhess.federation.server.local_training.check_relay", lambda config: None)
    with pytest.raises(FederationError, match=r"--momentum 0.9: strategy fish carries it"):
        toy_run(strategy="fish", momentum=0.9, **PRIVATE)


def test_a_deployed_client_sends_no_digest_no_loss_and_evaluates_nothing() -> None:
    config = toy_config(strategy="hgp", strategy_args={"scale": "absolute"}, **PRIVATE)
    grid = InProcessGrid(app, node_configs={2: {"domain": "north"}}, run_config=config.to_run_config())
    payload = GlobalModel(build_model(config), optimizer_args=None).payload()

    def send(message_type: str, *names: str, reference: ArrayRecord | None = None) -> Message:
        settings = {protocol.MODEL_ID: payload.model_id, protocol.ROUND: 1, protocol.NAMES: list(names)}
        settings[protocol.DATA_DIGEST] = "guess"
        content = RecordDict({protocol.MODEL: payload.arrays, protocol.CONFIG: ConfigRecord(settings)})
        content[protocol.REFERENCE] = reference or ArrayRecord()
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=2, message_type=message_type)], timeout=60)
        return reply

    with run_identity(1):
        identity = protocol.Identity.from_record(send(protocol.IDENTIFY).content.config_records[protocol.CONFIG])
        assert (identity.noise, identity.data_digest, identity.evaluate_examples) == ("system", "", 0)
        assert "is a source of a private run: it evaluates nothing" in str(send("evaluate").error.reason)
        answers = [send("query.statistics", "gradient", "hgp").content for _ in range(2)]
        first, again = (answer[protocol.STATISTIC_VALUES]["gradient"].numpy() for answer in answers)  # type: ignore[index]
        assert (first != again).all()
        trained = send("train", reference=answers[0].array_records[protocol.STATISTIC_VALUES]).content
        assert sorted(trained[protocol.METRICS]) == [protocol.NUM_EXAMPLES, "seconds"]
        assert sorted(trained) == [protocol.MODEL, protocol.METRICS]
    grid.close()


@pytest.mark.parametrize("changes", [{}, {"dp_unit": "example", "references": "previous"}])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits_and_the_same_epsilon(
    toy_run: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"strategy": "hgp", "rounds": 4, **PRIVATE, **changes}
    straight = toy_run(**settings)
    with pytest.raises(FederationError, match="round 3: 2 of 3 source clients"):
        toy_run(directory=tmp_path, app=Misbehaving(protocol.TRAIN, crash, first_round=3), **settings)
    resumed = toy_run(directory=tmp_path, **settings)
    assert all(torch.equal(straight.tensors[name], resumed.tensors[name]) for name in straight.tensors)
    last, again = ([row["epsilon"] for row in run.rows if "epsilon" in row][-3:] for run in (straight, resumed))
    assert last == again == [pytest.approx(8.0)] * 3


def test_a_deployed_run_that_was_interrupted_is_not_continued(toy_run: Run, tmp_path: Path, monkeypatch) -> None:
    deployed = partial(private_identity, simulated=False)
    monkeypatch.setattr("fedhess.federation.client.call.private_identity", lambda identity, **_: deployed(identity))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedhess.federation.server.round.LocalPhase.require_quorum", crash)
        with pytest.raises(KeyboardInterrupt):
            toy_run(directory=tmp_path, **PRIVATE)
    with pytest.raises(UsageError, match="round 0: this private run cannot continue"):
        toy_run(directory=tmp_path, **PRIVATE)
