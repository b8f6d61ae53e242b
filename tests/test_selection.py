"""The reported model is chosen by the sources' validation examples, never by the target."""

import pytest
from rows import source, target

from fedhess.selection import (
    LAST_ROUND,
    SOURCE_VALIDATION,
    mean_distance,
    select_round,
    selection_rule,
    source_accuracy,
    target_accuracy,
)


def test_round_with_the_best_source_validation_is_selected_although_the_target_disagrees() -> None:
    rows = [
        *(source(0, "a", 0.2), source(0, "b", 0.2), target(0, 1.0)),
        *(source(1, "a", 0.9), source(1, "b", 0.7), target(1, 0.1)),
        *(source(2, "a", 0.99), source(2, "b", 0.5), target(2, 0.9)),
    ]
    assert selection_rule(rows) == SOURCE_VALIDATION
    assert select_round(rows) == 1


def test_target_rows_do_not_enter_the_selection() -> None:
    rows = [source(0, "a", 0.5), source(1, "a", 0.4)]
    for accuracy in (0.0, 1.0, None):
        assert select_round([*rows, target(0, 0.5), target(1, accuracy)]) == 0


def test_domains_count_equally_whatever_their_size() -> None:
    big = {"examples": 1000}
    rows = [source(0, "a", 0.9, **big), source(0, "b", 0.1), source(1, "a", 0.6, **big), source(1, "b", 0.5)]
    assert select_round(rows) == 1


def test_ties_go_to_the_lower_loss_then_to_the_earlier_round() -> None:
    assert select_round([source(0, "a", 0.5, 2.0), source(1, "a", 0.5, 1.0), source(2, "a", 0.5, 1.0)]) == 1
    assert select_round([source(0, "a", 0.5, None), source(1, "a", 0.5, 9.0)]) == 1, "no finite loss is the worst"


def test_round_that_a_source_missed_is_not_selected() -> None:
    rows = [source(0, "a", 0.1), source(0, "b", 0.1), source(1, "a", 0.9), source(1, "b", None)]
    assert select_round(rows) == 0


def test_nothing_is_selected_where_every_round_misses_a_source() -> None:
    assert select_round([source(0, "a", None), target(0, 0.5)]) is None
    assert target_accuracy([target(0, 0.5)], None, "t") is None


def test_last_round_counts_where_nothing_is_held_out() -> None:
    rows = [source(number, "a", 1 - number / 10) | {"split": "train"} for number in range(3)]
    assert selection_rule(rows) == LAST_ROUND
    assert select_round(rows) == 2


def test_target_accuracy_weighs_clients_by_their_examples() -> None:
    rows = [target(3, 1.0, examples=30), target(3, 0.5, examples=10), target(3, 0.0, domain="u"), target(2, 0.0)]
    assert target_accuracy(rows, 3, "t") == pytest.approx(0.875)
    assert target_accuracy([*rows, target(3, None)], 3, "t") is None
    assert target_accuracy(rows, 3, "nowhere") is None


def test_mean_distance_is_over_the_sources_of_one_round() -> None:
    rows = [source(0, "a", 0.5, d=1.0), source(0, "b", 0.5, d=3.0), source(1, "a", 0.5, d=9.0), target(0, 0.5)]
    assert mean_distance(rows, 0, "d") == 2.0
    assert mean_distance([*rows, source(0, "c", None, d=None)], 0, "d") is None
    assert mean_distance(rows, 7, "d") is None


# -- Several clients a domain, missing rows ----------------------------------------------------------------------------


def test_clients_of_one_domain_count_by_their_examples_and_domains_equally() -> None:
    rows = [
        *(source(0, "a", 1.0, client=0, examples=30), source(0, "a", 0.0, client=1), source(0, "b", 0.5)),
        *(source(1, "a", 0.9, client=0, examples=30), source(1, "a", 0.3, client=1), source(1, "b", 0.46)),
    ]
    assert source_accuracy(rows, 0) == pytest.approx((0.75 + 0.5) / 2)
    assert source_accuracy(rows, 1) == pytest.approx((0.75 + 0.46) / 2)
    assert select_round(rows) == 0, "over clients, round 1 would be better"


def test_round_without_a_row_of_some_client_is_not_selected() -> None:
    rows = [source(0, "a", 0.1), source(0, "b", 0.1), source(1, "a", 0.9)]
    assert select_round(rows) == 0
