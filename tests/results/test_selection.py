"""The reported model is chosen by the sources' validation examples, never by the target."""

from collections.abc import Sequence

import pytest
from rows import source, target

from fedhess.federation.server.round_selection import Candidate, comparable_rounds, select_round
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.selectors import LAST_ROUND, SOURCE_VALIDATION
from fedhess.results.selection import (
    Choice,
    choose,
    mean_distance,
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
    rows = [source(1, "a", 0.5), source(2, "a", 0.4)]
    for accuracy in (0.0, 1.0, None):
        assert select_round([*rows, target(1, 0.5), target(2, accuracy)]) == 1


def test_model_before_training_is_never_selected() -> None:
    rows = [source(0, "a", 0.9), source(1, "a", 0.1)]
    assert select_round(rows) == 1
    assert select_round(rows[:1]) is None
    assert select_round([row | {"split": "train"} for row in rows[:1]]) is None


def test_domains_count_equally_whatever_their_size() -> None:
    big = {"examples": 1000}
    rows = [source(1, "a", 0.9, **big), source(1, "b", 0.1), source(2, "a", 0.6, **big), source(2, "b", 0.5)]
    assert select_round(rows) == 2


def test_ties_go_to_the_lower_loss_then_to_the_earlier_round() -> None:
    assert select_round([source(1, "a", 0.5, 2.0), source(2, "a", 0.5, 1.0), source(3, "a", 0.5, 1.0)]) == 2
    assert select_round([source(1, "a", 0.5, None), source(2, "a", 0.5, 9.0)]) == 2, "no finite loss is the worst"


def test_round_that_a_source_missed_is_not_selected_where_everybody_is_needed() -> None:
    rows = [source(1, "a", 0.1), source(1, "b", 0.1), source(2, "a", 0.9), source(2, "b", None)]
    assert select_round(rows) == 1


def by_client(**accuracies: Sequence[float | None]) -> list[Row]:
    """Rows of rounds 1, 2, ... by source."""
    return [source(n, name, value) for name, each in accuracies.items() for n, value in enumerate(each, start=1)]


@pytest.mark.parametrize(
    ("rows", "gaps", "absent", "selected"),
    [
        # c is good in the only round that it evaluates: on a and b alone that round is the worst.
        (by_client(a=(0.1, 0.5, 0.4), b=(0.1, 0.3, 0.6), c=(1.0, None, None)), [], ["c"], 3),
        # Two are needed: round 2 has one, and without a or without c no two are left for all of the others.
        (by_client(a=(0.9, None, 0.1, 0.2), b=(0.9, 0.9, 0.1, 0.1), c=(None, None, 0.2, 0.2)), [2], ["c"], 1),
        (by_client(a=(0.9, None, None), b=(0.9, 0.1, 0.2), c=(None, 0.2, 0.2)), [1], ["a"], 3),
        (by_client(a=(None, 0.5), b=(None, None), c=(0.5, None)), [1, 2], [], None),
    ],
)
def test_rounds_of_the_quorum_are_compared_on_the_same_clients(
    rows: list[Row], gaps: list[int], absent: list[str], selected: int | None
) -> None:
    rows += [source(0, name, 1.0) for name in "abc"]
    assert select_round(rows, quorum=2) == selected
    found = comparable_rounds([Candidate(rows, 3, quorum=2)])
    assert (found.gaps, found.absent) == ([gaps], absent)


def test_settings_are_compared_on_the_same_clients() -> None:
    whole, without = by_client(a=(0.5,), b=(0.5,), c=(0.0,)), by_client(a=(0.4,), b=(0.4,), c=(None,))
    choice = choose("source", [Candidate(rows, 1, quorum=2) for rows in (without, whole)], ["t"])
    assert choice == Choice(candidate=1, server_round=1, accuracy=0.5)


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
        *(source(1, "a", 1.0, client=0, examples=30), source(1, "a", 0.0, client=1), source(1, "b", 0.5)),
        *(source(2, "a", 0.9, client=0, examples=30), source(2, "a", 0.3, client=1), source(2, "b", 0.46)),
    ]
    assert source_accuracy(rows, 1) == pytest.approx((0.75 + 0.5) / 2)
    assert source_accuracy(rows, 2) == pytest.approx((0.75 + 0.46) / 2)
    assert select_round(rows) == 1, "over clients, round 2 would be better"


def test_round_without_a_row_of_some_client_is_not_selected() -> None:
    rows = [source(1, "a", 0.1), source(1, "b", 0.1), source(2, "a", 0.9)]
    assert select_round(rows) == 1


def test_client_of_several_domains_counts_once_in_each_that_it_evaluates() -> None:
    def rows(number: int, own: float | None, foreign: float | None) -> list[Row]:
        return [
            source(number, "a", own, client=0, d=1.0),
            source(number, "a", foreign, client=0, main_domain="b", examples=30, d=1.0),
            source(number, "b", 0.5, client=0, d=5.0),
            source(number, "b", None, client=0, main_domain="a", d=None) | {"split": "none"},
        ]

    recorded = [*rows(1, 0.8, 0.4), *rows(2, 0.4, 0.6), *rows(3, 1.0, None)]
    assert source_accuracy(recorded, 1) == pytest.approx((0.5 + 0.5) / 2)
    assert source_accuracy(recorded, 2) == pytest.approx((0.55 + 0.5) / 2)
    assert select_round(recorded) == 2, "at round 3 one is missing, who holds none of a domain is not"
    assert mean_distance(recorded, 2, "d") == 3.0, "domains weigh equally"
