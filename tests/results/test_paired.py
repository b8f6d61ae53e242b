"""Paired differences: Student's interval, Holm's correction, and what has no interval."""

import itertools
import random

import pytest
from scipy import stats

from fedhess.results.paired import compare_paired, explain, holm, paired_difference, shown_difference, stars


def numbered(values: list[float]) -> dict[str, float | None]:
    return {str(seed): value for seed, value in enumerate(values)}


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_interval_and_p_value_are_those_of_the_paired_t_test(seeds: int) -> None:
    draw = random.Random(seeds)
    ours, theirs = ([draw.gauss(70, 2) for _ in range(seeds)] for _ in range(2))
    cell = paired_difference(numbered(ours), numbered(theirs))
    known = stats.ttest_rel(ours, theirs)
    low, high = known.confidence_interval(0.95)
    assert cell["p"] == pytest.approx(known.pvalue, rel=1e-10)
    assert (cell["low"], cell["high"]) == pytest.approx((low, high), rel=1e-10)
    assert cell["pairs"] == seeds


def test_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    draw, held = random.Random(0), 0
    for _ in range(1500):
        common = [draw.gauss(0, 5) for _ in range(3)]  # what seeds do to both
        ours = [1.5 + each + draw.gauss(0, 1) for each in common]
        cell = paired_difference(numbered(ours), numbered([each + draw.gauss(0, 1) for each in common]))
        held += cell["low"] <= 1.5 <= cell["high"]
    assert 0.93 < held / 1500 < 0.97


def test_only_seeds_that_both_have_are_paired() -> None:
    cell = paired_difference({"0": 5.0, "1": None, "2": 7.0, "3": 9.0}, {"0": 4.0, "1": 1.0, "2": 5.0, "4": 0.0})
    assert (cell["difference"], cell["pairs"]) == (1.5, 2)
    assert paired_difference({"0": 5.0}, {"1": 4.0})["difference"] is None


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0], [0.3, 0.1 + 0.2]])
def test_one_pair_or_equal_ones_have_a_difference_and_no_interval(values: list[float]) -> None:
    cell = paired_difference(numbered(values), numbered([0.0] * len(values)))
    assert cell["difference"] == pytest.approx(values[0])
    assert cell["low"] is cell["high"] is cell["p"] is None
    assert stars(cell | {"p_holm": None}) == ""


def test_holms_correction_is_the_closed_test_of_bonferronis() -> None:
    draw = random.Random(1)
    for _ in range(20):
        values = [draw.random() ** 3 for _ in range(5)]
        subsets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]
        for number, adjusted in enumerate(holm(values)):
            tests = [min(1.0, len(s) * min(values[other] for other in s)) for s in subsets if number in s]
            assert adjusted == pytest.approx(max(tests))


def columns(*values: float | None) -> dict[str, dict[str, float | None]]:
    return {"average": {str(seed): value for seed, value in enumerate(values)}}


def test_every_strategy_is_compared_with_erm_and_the_corrected_ones_have_two_stars() -> None:
    values = {
        "hgp": columns(75.0, 75.1, 75.2), "erm": columns(70.0, 70.1, 70.3), "coral": columns(72.0, 70.0, 71.0),
        "irm": columns(71.0, 71.0, 71.1),
    }  # fmt: skip
    found = compare_paired(values)
    assert found is not None
    assert (found["baseline"], found["comparisons"], list(found["strategies"])) == ("erm", 3, ["hgp", "coral", "irm"])
    marks = {name: stars(of["average"]) for name, of in found["strategies"].items()}
    assert marks == {"hgp": "**", "coral": "", "irm": "**"}
    assert shown_difference(found["strategies"]["hgp"]["average"]) == "+5.0 [+4.8, +5.1] **"
    assert "Student's t over 3 seeds" in explain(found)
    assert "Holm's correction for 3 comparison(s)" in explain(found)
    many = {f"other {number}": columns(72.0, 70.0, 71.0 + number) for number in range(20)}
    corrected = compare_paired(values | many)
    assert corrected is not None
    assert stars(corrected["strategies"]["irm"]["average"]) == "*", "its interval excludes 0, 23 comparisons do not"


def test_targets_are_said_to_be_averaged_where_they_are() -> None:
    values = {name: {"0": 1.0, "1": value} for name, value in (("erm", 2.0), ("hgp", 4.0))}
    by_column = {name: dict.fromkeys(("average",), of) for name, of in values.items()}
    alone = {name: {"flip": of, "grey": of} for name, of in values.items()}
    said = [explain(compare_paired(each) or {}) for each in (by_column, alone)]
    assert ["averaged first" in text for text in said] == [True, False]


def test_first_strategy_is_the_baseline_where_erm_did_not_run_and_one_alone_is_not_compared() -> None:
    found = compare_paired({"hgp": columns(71.0), "irm": columns(70.0)})
    assert found is not None
    assert found["baseline"] == "hgp"
    assert shown_difference(found["strategies"]["irm"]["average"]) == "-1.0"
    assert explain(found).startswith("to hgp: difference")
    assert "no interval: that takes two seeds" in explain(found)
    assert compare_paired({"erm": columns(71.0)}) is None
