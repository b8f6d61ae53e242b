"""A client that fails, lies or hangs is named with its round and phase, and the run goes on under the quorum rule."""

import re
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import DOMAINS, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TRAIN_FAULTS = {
    1: ("raise", "the disk is gone"),
    2: ("nan", "not finite"),
    3: ("shape", "has shape (3, 5), expected"),
    4: ("keys", "unexpected ['other."),
    5: ("huge", "has shape (50000000,), expected"),
    6: ("die", "no reply within 40 s"),
    7: ("late", "no reply within 40 s"),
}


ROUNDS = 13


def test_a_misbehaving_client_is_left_out_of_its_round_and_welcome_in_the_next(started: Federation) -> None:
    faults = ",".join(f"train@{number}={fault}" for number, (fault, _) in TRAIN_FAULTS.items())
    started.start_nodes(faults=faults, late_seconds=50)
    started.start_run("job", f"rounds={ROUNDS} quorum=2 deadline=40.0")
    log = started.finish("job", 900)
    failures = started.failures("job")
    for number, (fault, reason) in TRAIN_FAULTS.items():
        of_round = [found for found in failures if found[0] == number]
        assert [(found[1], found[2]) for found in of_round] == [("cartoon", "train")], (fault, failures)
        assert reason in of_round[0][3], fault
        assert f"round {number}, train, client cartoon:" in log, "the user sees it"
    # A node works through its messages in order, also those that nobody waits for any more.
    assert not [found for found in failures if found[0] == ROUNDS], "it has caught up"
    assert started.completed_round("job") == ROUNDS


def test_a_client_that_hangs_in_an_exchange_ends_a_run_that_needs_everybody(started: Federation) -> None:
    started.start_nodes(faults="query.statistics@2=hang")
    started.start_run("job", 'rounds=3 exchange-deadline=45.0 strategy="hgp"')
    log = started.finish("job", 400)
    assert "round 2, exchange gradient, client cartoon: no reply within 45 s" in log
    assert "2 of 3 source clients completed phase 'exchange gradient', 3 are needed" in log
    assert started.completed_round("job") == 1, "no completed round is lost"


def test_a_second_reply_to_one_message_counts_for_nothing(started: Federation) -> None:
    for domain in DOMAINS:
        if domain != "cartoon":
            started.start_node(domain)
    started.start_node("cartoon", script=Path(__file__).parent / "insistent_node.py")
    started.start_run("twice", "rounds=2")
    started.finish("twice", 400)
    started.await_log("cartoon", "second reply, another", 30, times=2)
    # The first is the word that it does not hold the model yet: said again, it is the same message to Flower.
    answers = re.findall(r"second reply, (\w+ ?\w+): (\d+) parts of it wanted", started.log("cartoon"))
    assert [kind for kind, _ in answers] == ["the same", "another", "another"]
    assert [wanted for _, wanted in answers][1:] == ["0", "0"], "the SuperLink takes one reply to a message"
    assert started.failures("twice") == []
    started.simulate("once", rounds=2)
    assert started.weights("twice") == started.weights("once")


def test_a_target_that_is_asked_to_train_refuses_and_the_round_goes_on_without_it(federation: Federation) -> None:
    federation.start_superlink(MISLED="sketch")  # the server's process inherits it
    federation.register()
    for domain, role in {"art_painting": "source", "cartoon": "source", "sketch": "target", "photo": "target"}.items():
        federation.start_node(domain, role=role)
    asked = {"hgp": ("query.statistics", "exchange gradient"), "erm": ("train", "train")}
    for strategy, (message_type, phase) in asked.items():
        domains = 'sources="art_painting,cartoon,sketch" targets="photo"'
        federation.start_run(strategy, f'{domains} rounds=2 quorum=2 strategy="{strategy}"')
        log = federation.finish(strategy, 400)
        refused = f"its client answers evaluate messages only, refused '{message_type}'"
        for number in (1, 2):
            said = f"round {number}, {phase}, client sketch: error 1001: sketch is a target domain: {refused}"
            assert said in log, log
        rows = [row for row in federation.rows(strategy, target="photo") if row["round"] == 2]
        assert {row["domain"] for row in rows if row["accuracy"] is not None} == {"art_painting", "cartoon", "photo"}
        assert all(row["domain"] == "sketch" for row in rows if row["failures"])


def test_a_target_evaluates_a_model_once_and_its_node_adds_the_noise(federation: Federation) -> None:
    """The server asks for each evaluation twice."""
    federation.start_superlink(CURIOUS="yes")
    federation.register()
    for domain in DOMAINS:
        federation.start_node(domain, **({"evaluation_epsilon": 1.0} if domain == "sketch" else {}))
    federation.start_run("curious", "rounds=1")
    log = federation.finish("curious", 400)
    refused = [(number, domain, reason) for number, domain, phase, reason in federation.failures("curious")]
    said = "error 1002: a target evaluates one model a round, in order, in rounds 0 to 1: got round {0} after {0}"
    assert refused == [(number, "sketch", said.format(number)) for number in (0, 1)], log
    rows = [row for row in federation.rows("curious") if row["domain"] == "sketch"]
    assert [row["loss"] for row in rows] == [None, None]
    assert all(sum(count for _, _, count in row["confusion"]) != row["examples"] for row in rows), rows
    labels = [[sum(n for label, _, n in row["confusion"] if label == each) for each in range(7)] for row in rows]
    assert labels[0] != labels[1], "its class counts, of the same examples"


def test_a_strategy_that_only_the_server_has_is_said_with_what_to_do(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "lonely_strategy.py").write_text(
        "from fedhess.strategies.erm import ERM\n\n\nclass Lonely(ERM):\n    pass\n", encoding="utf-8"
    )
    federation.start_superlink(PYTHONPATH=str(tmp_path / "lonely"))
    federation.register()
    for domain in DOMAINS:
        federation.start_node(domain, modules="lonely_strategy")
    federation.start_run("job", 'rounds=2 strategy="lonely_strategy:Lonely"')
    log = federation.finish("job", 300)
    assert "error 1002: --strategy: cannot import 'lonely_strategy'" in log
    assert "is it installed, or on PYTHONPATH?" in log
    assert federation.completed_round("job") == 0
    assert "lonely_strategy" not in sys.modules
