"""Three selectors choose among rounds and settings; only the oracle looks at the target, and it is no default."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import source, target

from fedhess.base.errors import UsageError
from fedhess.federation.server.round_selection import Candidate
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.selectors import SELECTORS, read_selectors
from fedhess.results.selection import Choice, choose, lodo_merits, target_accuracy

# -- Settings ----------------------------------------------------------------------------------------------------------


def one_run(*accuracies: float | None, at_target: float | None = 0.5) -> list[Row]:
    """Rows of a run with two sources that are equally good, and a target that is always the same."""
    rows = [source(number, domain, accuracy) for number, accuracy in enumerate(accuracies) for domain in "ab"]
    return rows + [target(number, at_target) for number in range(len(accuracies))]


def test_best_round_of_the_best_setting_is_selected() -> None:
    candidates = [Candidate(one_run(*each), 2) for each in ((0.1, 0.5, 0.4), (0.1, 0.3, 0.6), (0.2, 0.2, 0.2))]
    assert choose("source", candidates, ["t"]) == Choice(candidate=1, server_round=2, accuracy=0.6)


def test_tie_of_settings_goes_to_the_earlier_round_then_to_the_earlier_setting() -> None:
    first, second, third = (
        Candidate(one_run(*each), 2) for each in ((0.1, 0.2, 0.6), (0.1, 0.6, 0.5), (0.1, 0.6, 0.1))
    )
    assert choose("source", [first, second, third], ["t"]) == Choice(1, 1, 0.6)


def test_setting_that_stopped_early_is_selected_by_the_rounds_it_has() -> None:
    stopped, finished, never_begun = Candidate(one_run(0.1, 0.7), 3), Candidate(one_run(0.1, 0.2, 0.3, 0.4), 3), []
    candidates = [stopped, finished, Candidate(never_begun, 3)]
    assert choose("source", candidates, ["t"]) == Choice(0, 1, 0.7)
    assert choose("oracle", [Candidate(each.rows, 3) for each in candidates], ["t"]) == Choice(1, 3, 0.5), (
        "no last round"
    )
    assert choose("source", [Candidate([], 3)], ["t"]) is None


def test_settings_cannot_be_told_apart_where_nothing_is_held_out() -> None:
    rows = [row | {"split": "train"} if row["role"] == "source" else row for row in one_run(0.1, 0.2)]
    with pytest.raises(UsageError, match=r"2 settings cannot be told apart by source validation.*--selection lodo"):
        choose("source", [Candidate(rows, 1), Candidate(rows, 1)], ["t"])
    assert choose("source", [Candidate(rows, 1)], ["t"]) == Choice(0, 1, 0.2), "one setting: its last round"


# -- Cross-validation --------------------------------------------------------------------------------------------------


def left_out(domain: str, *accuracies: float | None, of_target: float = 0.5) -> list[Row]:
    """Rows of the run that leaves out t and one source, which may be worth 0.5 to t and something else to itself."""
    (other,) = {"a", "b"} - {domain}
    rows = [target(number, accuracy, domain=domain) for number, accuracy in enumerate(accuracies)]
    rows += [target(number, of_target) for number in range(len(accuracies))]
    return rows + [source(number, other, 0.9 - number / 10) for number in range(len(accuracies))]


def test_cross_validation_takes_the_round_best_on_the_sources_left_out() -> None:
    inner = {"a": left_out("a", 0.1, 0.8, 0.3), "b": left_out("b", 0.2, 0.2, 0.6)}
    by_hand = {0: 0.15, 1: 0.5, 2: 0.45}
    chosen = choose("lodo", [Candidate(one_run(0.9, 0.1, 0.2), 2, inner)], ["t"])
    assert chosen == Choice(0, 1, pytest.approx(max(by_hand.values())))


def test_cross_validation_judges_averages_by_averages() -> None:
    def averaged(rows: list[Row], begins: int) -> list[Row]:
        return [row | {"averaged": max(0, row["round"] - begins + 1)} for row in rows]

    run = averaged(one_run(*[0.5] * 5), 2)
    inner = {domain: averaged(left_out(domain, 0.1, 0.9, 0.9, 0.9, 0.4), 4) for domain in "ab"}
    assert list(lodo_merits(run, inner)) == [4], "in rounds 2 and 3 the inner runs evaluated the model itself"


def test_cross_validation_tells_settings_apart() -> None:
    weak = Candidate(one_run(0.9, 0.9), 1, {"a": left_out("a", 0.1, 0.2), "b": left_out("b", 0.2, 0.2)})
    strong = Candidate(one_run(0.1, 0.1), 1, {"a": left_out("a", 0.1, 0.6), "b": left_out("b", 0.2, 0.2)})
    assert choose("lodo", [weak, strong], ["t"]) == Choice(1, 1, pytest.approx(0.4))
    assert choose("source", [weak, strong], ["t"]) == Choice(0, 1, 0.9)


def test_tie_in_cross_validation_goes_to_the_lower_loss_then_to_the_earlier_round() -> None:
    def run(domain: str, *losses: float) -> list[Row]:
        return [target(number, 0.5, domain=domain, loss=loss) for number, loss in enumerate(losses)]

    inner = {"a": run("a", 2.0, 1.0, 1.0), "b": run("b", 1.0, 1.0, 1.0)}
    assert choose("lodo", [Candidate(one_run(0.5, 0.5, 0.5), 2, inner)], ["t"]) == Choice(0, 1, 0.5)


def test_round_at_which_a_left_out_client_failed_does_not_count() -> None:
    inner = {"a": left_out("a", 0.1, None, 0.3), "b": left_out("b", 0.2, 1.0, 0.6)}
    assert choose("lodo", [Candidate(one_run(0.5, 0.5, 0.5), 2, inner)], ["t"]) == Choice(0, 2, pytest.approx(0.45))


def test_round_that_one_of_the_runs_lacks_does_not_count() -> None:
    inner = {"a": left_out("a", 0.1, 0.9), "b": left_out("b", 0.2, 0.2, 0.6)}
    candidate = Candidate(one_run(0.5, 0.5, 0.5), 2, inner)
    assert choose("lodo", [candidate], ["t"]) == Choice(0, 1, pytest.approx(0.55)), "the first stopped after round 1"
    inner["a"] = left_out("a", 0.1, 0.9, 0.9)
    shorter = Candidate(one_run(0.5, 0.5), 2, inner)
    assert choose("lodo", [shorter], ["t"]) == Choice(0, 1, pytest.approx(0.55)), "here the run itself did"
    assert choose("lodo", [Candidate(one_run(0.5), 2, inner)], ["t"]) is None, "it has not trained"


def test_nothing_is_selected_where_a_run_is_missing() -> None:
    assert choose("lodo", [Candidate(one_run(0.5), 0, {"a": left_out("a", 0.5)})], ["t"]) is None
    assert choose("lodo", [Candidate(one_run(0.5), 0)], ["t"]) is None


def test_left_out_source_that_is_split_is_judged_by_its_in_split() -> None:
    def run(domain: str, *pairs: tuple[float, float]) -> list[Row]:
        return [
            target(number, accuracy, domain=domain, split=split)
            for number, pair in enumerate(pairs)
            for split, accuracy in zip(("in", "out"), pair, strict=True)
        ]

    inner = {"a": run("a", (0.4, 0.9), (0.5, 0.1)), "b": run("b", (0.4, 0.9), (0.5, 0.1))}
    assert choose("lodo", [Candidate(one_run(0.5, 0.5), 1, inner)], ["t"]) == Choice(0, 1, 0.5)


# -- Oracle ------------------------------------------------------------------------------------------------------------


def test_oracle_takes_the_last_round_of_the_setting_best_on_the_out_split() -> None:
    def split(*pairs: tuple[float, float]) -> Candidate:
        rows = one_run(*([0.5] * len(pairs)))
        rows = [row for row in rows if row["role"] == "source"]
        for number, (inside, outside) in enumerate(pairs):
            rows += [target(number, inside, split="in"), target(number, outside, split="out", examples=3)]
        return Candidate(rows, len(pairs) - 1)

    candidates = [split((0.1, 1.0), (0.9, 0.2)), split((0.1, 0.1), (0.3, 0.6))]
    assert choose("oracle", candidates, ["t"]) == Choice(1, 1, 0.6), "by the out split, without early stopping"
    assert target_accuracy(candidates[1].rows, 1, "t") == 0.3, "reported on the in split"


def test_oracle_without_a_split_looks_at_the_whole_target() -> None:
    candidates = [Candidate(one_run(0.5, at_target=each), 0) for each in (0.2, 0.7, 0.7)]
    assert choose("oracle", candidates, ["t"]) == Choice(1, 0, 0.7)


def test_oracle_needs_every_target_at_the_last_round() -> None:
    rows = [source(0, "a", 0.5), target(0, 0.5), target(0, None, domain="u")]
    assert choose("oracle", [Candidate(rows, 0)], ["t"]) == Choice(0, 0, 0.5)
    assert choose("oracle", [Candidate(rows, 0)], ["t", "u"]) is None
    assert choose("oracle", [Candidate(rows, 1)], ["t"]) is None


def test_only_the_oracle_is_labelled_as_looking_at_the_target() -> None:
    assert {name for name, label in SELECTORS.items() if "looks at the target" in label} == {"oracle"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("source", ["source"]), (" lodo, oracle,lodo", ["lodo", "oracle"]), ("all", list(SELECTORS))],
)
def test_selectors_are_read(given: str, expected: list[str]) -> None:
    assert read_selectors(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("orcle", r"--selection: unknown selector 'orcle'; did you mean 'oracle'\?.*, or all"),
        (" ,", "--selection: expected all or some of source, lodo, oracle, got nothing"),
    ],
)
def test_selectors_that_are_none_are_named(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_selectors(given)


# -- Any rows ----------------------------------------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=5),
    inner=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=5),
    noise=st.integers(0, 99),
)
def test_selectors_agree_with_a_plain_search_and_ignore_the_target(table, inner, noise) -> None:
    names = ("a", "b", "c")
    rows = [
        source(number, name, value)
        for number, each in enumerate(table)
        for name, value in zip(names, each, strict=True)
    ]
    runs = {name: [target(n, each[i], domain=name) for n, each in enumerate(inner)] for i, name in enumerate(names)}
    shuffled = random.Random(noise)

    def with_target(rows: list[Row], *, many: int = 5) -> list[Row]:
        """Add any target rows, then put all in any order."""
        mixed = rows + [target(n, shuffled.choice([None, 0.0, 1.0]), loss=shuffled.random()) for n in range(many)]
        shuffled.shuffle(mixed)
        return mixed

    def plain(scores: dict[int, list[float | None]]) -> int | None:
        whole = {number: sum(values) / 3 for number, values in scores.items() if number > 0 and None not in values}
        return min((number for number in whole if whole[number] == max(whole.values())), default=None)

    by_source = plain(dict(enumerate(table)))
    both = range(min(len(table), len(inner)))
    by_inner = plain({number: inner[number] for number in both})
    for _ in range(3):
        candidate = Candidate(with_target(rows), 9, {name: with_target(each) for name, each in runs.items()})
        for selector, expected in (("source", by_source), ("lodo", by_inner)):
            found = choose(selector, [candidate], ["t"])
            assert (None if found is None else found.server_round) == expected
