"""A client that fails, lies or hangs is named with its round and phase, and the run goes on under the quorum rule."""

import sys
from pathlib import Path

import pytest

from faults.conftest import DOMAINS, SOURCES, Federation

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


def start_all(federation: Federation, **of_cartoon: object) -> None:
    for domain in DOMAINS:
        federation.start_node(domain, **(of_cartoon if domain == "cartoon" else {}))


def test_a_misbehaving_client_is_left_out_of_its_round_and_welcome_in_the_next(started: Federation) -> None:
    faults = ",".join(f"train@{number}={fault}" for number, (fault, _) in TRAIN_FAULTS.items())
    start_all(started, faults=faults, late_seconds=50)
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
    start_all(started, faults="query.statistics@2=hang")
    started.start_run("job", 'rounds=3 exchange-deadline=45.0 strategy="hgp"')
    log = started.finish("job", 400)
    assert "round 2, exchange gradient, client cartoon: no reply within 45 s" in log
    assert "2 of 3 source clients completed phase 'exchange gradient', 3 are needed" in log
    assert started.completed_round("job") == 1, "no completed round is lost"


def test_a_strategy_that_only_the_server_has_is_said_with_what_to_do(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "lonely_strategy.py").write_text(
        "from strategies.erm import ERM\n\n\nclass Lonely(ERM):\n    pass\n", encoding="utf-8"
    )
    federation.start_superlink(PYTHONPATH=str(tmp_path / "lonely"))
    federation.register()
    start_all(federation)
    federation.start_run("job", 'rounds=2 strategy="lonely_strategy:Lonely"')
    log = federation.finish("job", 300)
    for domain in SOURCES:
        assert f"client {domain}: error 1002: --strategy: cannot import 'lonely_strategy'" in log
    assert "is it installed, or on PYTHONPATH?" in log
    assert federation.completed_round("job") == 0
    assert "lonely_strategy" not in sys.modules
