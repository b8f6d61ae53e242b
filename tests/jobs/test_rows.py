"""Selection and tables see domains: their clients' rows together, every example once."""

from typing import Any

import pytest

from fedhess.federation.server.round_selection import select_round
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.progress import scores
from fedhess.jobs.rows import domain_rows
from fedhess.results.selection import source_accuracy, target_accuracy


def row(number: int, domain: str, client: int, accuracy: float | None, examples: int, **more: Any) -> Row:
    made: Row = {"round": number, "domain": domain, "client": client, "role": "source", "split": "validation"}
    made |= {"examples": examples, "loss": accuracy, "accuracy": accuracy, "train_loss": None, "failures": []}
    return made | {"gradient_distance": 2.0, "bytes_down": 5} | more


def test_a_domain_of_one_client_keeps_its_row() -> None:
    rows = [row(1, "a", 0, 0.5, 4), row(1, "b", 0, 0.25, 4), row(2, "a", 0, 0.5, 4)]
    assert domain_rows(rows) == rows
    assert all(before is after for before, after in zip(rows, domain_rows(rows), strict=True))


def test_every_example_counts_once_and_every_domain_the_same() -> None:
    rows = [row(1, "a", 0, 1.0, 1), row(1, "a", 1, 0.0, 9), row(1, "b", 0, 0.5, 1000)]
    gathered = domain_rows(rows)
    assert [(r["domain"], r["examples"]) for r in gathered] == [("a", 10), ("b", 1000)]
    assert gathered[0]["accuracy"] == pytest.approx(0.1)
    assert source_accuracy(rows, 1) == pytest.approx(0.3)
    assert scores(rows) == "sources 30.0 %"
    assert domain_rows(gathered) == gathered


def test_a_client_with_nothing_to_evaluate_hides_no_domain() -> None:
    silent = row(1, "a", 1, None, 0, split="none", gradient_distance=None, train_loss=3.0)
    (gathered,) = domain_rows([row(1, "a", 0, 0.5, 4, train_loss=1.0), silent])
    assert (gathered["accuracy"], gathered["split"], gathered["examples"]) == (0.5, "validation", 4)
    assert gathered["train_loss"] == 2.0
    (first_silent,) = domain_rows([silent | {"client": 0}, row(1, "a", 1, 0.5, 4)])
    assert (first_silent["accuracy"], first_silent["gradient_distance"]) == (0.5, 2.0)


def test_a_client_that_failed_hides_its_domain_and_its_failure_is_kept() -> None:
    failed = row(1, "a", 1, None, 0, failures=[{"round": 1, "phase": "evaluate", "reason": "gone"}])
    rows = [row(2, "a", 0, 0.1, 4), row(2, "a", 1, 0.1, 4), row(1, "a", 0, 0.9, 4), failed]
    (_, gathered) = domain_rows(rows)
    assert gathered["accuracy"] is None
    assert [failure["reason"] for failure in gathered["failures"]] == ["gone"]
    assert gathered["bytes_down"] == 10
    assert select_round(rows) == 2
    assert source_accuracy(rows, 1) is None


def test_splits_of_a_domain_stay_apart() -> None:
    rows = [row(1, "t", 0, 0.5, 8, role="target", split="in"), row(1, "t", 0, 0.25, 2, role="target", split="out")]
    assert domain_rows(rows) == rows


def test_a_target_is_read_as_before() -> None:
    rows = [row(1, "t", 0, 0.5, 8, role="target", split="all"), row(1, "a", 0, 0.5, 8)]
    assert target_accuracy(rows, 1, "t") == 0.5
