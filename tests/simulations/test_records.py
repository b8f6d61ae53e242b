"""Results of scenarios: merged, summed up, held against what is published."""

import threading
from pathlib import Path
from typing import Any

import pytest

from fedhess.base.errors import UsageError
from fedhess.jobs.selectors import ORACLE
from fedhess.settings.run_config import RunConfig
from fedhess.simulations import correlation_shift
from fedhess.simulations.scenarios.comparison import render
from fedhess.simulations.scenarios.records import add_row, lines_of, load_record


def row(seed: int, target: float, **changes: Any) -> dict[str, Any]:
    accuracy = {"sources": 71.0, "flip-0.9": target, "grey": 66.0}
    made = {"benchmark": "ColoredMNIST", "strategy": "irm", "seed": seed, "given": {}, "digest": f"of seed {seed}"}
    made |= {"settings": {"rounds": 501}, "options": {"seed": seed}, "environment": {"git_revision": "abc"}}
    return made | {"accuracy": accuracy, "average": 66.0} | changes


def test_seeds_of_the_same_settings_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.json"
    shorter = row(0, 10.0, settings={"rounds": 3}, given={"overrides": {"rounds": 3}})
    for each in (row(1, 60.0), row(0, 70.0), row(0, 64.0), shorter):
        record = add_row(path, each, quick=False)
    line, other = lines_of(record["rows"])
    assert line.seeds == (0, 1)
    assert (line.label, other.label) == ("irm (rounds=501)", "irm (rounds=3)")
    assert line.cells["flip-0.9"] == {"mean": 62.0, "standard_error": pytest.approx(2.0), "trials": 2}
    assert other.cells["flip-0.9"] == {"mean": 10.0, "standard_error": None, "trials": 1}
    assert load_record(path, quick=False) == record


def test_job_run_again_after_a_new_setting_replaces_its_row_and_joins_older_seeds(tmp_path: Path) -> None:
    newer = {"rounds": 501, "augment": RunConfig.model_fields["augment"].default}
    for each in (row(0, 1.0), row(1, 60.0), row(0, 70.0, settings=newer)):
        record = add_row(tmp_path / "a.json", each, quick=False)
    (line,) = lines_of(record["rows"])
    assert (line.label, line.seeds, line.cells["flip-0.9"]["mean"]) == ("irm", (0, 1), 65.0)
    other_default = row(0, 50.0, settings={**newer, "rounds": 40})
    kept, changed = lines_of(add_row(tmp_path / "a.json", other_default, quick=False)["rows"])
    assert {kept.label: kept.seeds, changed.label: changed.seeds} == {"irm (rounds=501)": (1,), "irm (rounds=40)": (0,)}


@pytest.mark.parametrize("made_at_random", [True, False])
def test_other_data_is_another_row_and_another_line(tmp_path: Path, made_at_random: bool) -> None:
    for version, seeds in (("old", (0, 1)), ("new", (0,))):
        for seed in seeds:
            options = {"seed": seed} if made_at_random else {}
            digest = f"{version}-{seed if made_at_random else 'all'}"
            record = add_row(tmp_path / "a.json", row(seed, 1.0, options=options, digest=digest), quick=False)
    first = "0" if made_at_random else "all"
    assert [(line.label, line.seeds) for line in lines_of(record["rows"])] == [
        (f"irm (data=old-{first})", (0, 1)),
        (f"irm (data=new-{first})", (0,)),
    ]


@pytest.mark.parametrize(("there", "kinds"), [(True, "quick results, full ones"), (False, "full results, quick ones")])
def test_quick_and_full_results_are_not_mixed(tmp_path: Path, there: bool, kinds: str) -> None:
    add_row(tmp_path / "a.json", row(0, 1.0), quick=there)
    with pytest.raises(UsageError, match=f"holds {kinds} are not mixed with them; choose another folder"):
        add_row(tmp_path / "a.json", row(0, 1.0), quick=not there)


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}', '{"quick": false, "rows": [{}]}'])
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"a.json is damaged .+; delete it, or give another --out"):
        load_record(tmp_path / "a.json", quick=False)


def test_bar_is_two_published_deviations_or_two_and_a_half_points() -> None:
    def judged(strategy: str, train: float, target: float, grey: float) -> str:
        values = {"sources": train, "flip-0.9": target, "grey": grey}
        return correlation_shift.judge(
            strategy, {column: {"mean": value, "standard_error": 0.1} for column, value in values.items()}
        )

    assert judged("irm", 71.0, 62.1, 66.1).startswith("reached"), "3.6 = two deviations"
    assert judged("irm", 71.0, 61.9, 66.1) == "MISSED: target within 3.6"
    assert judged("erm", 86.4, 14.0, 68.4) == "MISSED: grey target within 2.5"
    assert judged("hgp", 0.0, 67.0, 0.0).startswith("reached")
    assert judged("hutchinson", 90.0, 66.9, 90.0) == "MISSED: target at least 67"
    assert judged("coral", 0.0, 0.0, 0.0) == ""


def test_run_of_the_authors_script_stands_in_a_column_of_its_own() -> None:
    environment = {"platform": "here", "cpu_count": 2, "git_revision": "abc", "versions": {"torch": "2", "flwr": "1"}}
    rows = [row(0, 60.0, strategy=name, per_domain=0, device="cpu", environment=environment) for name in ("hgp", "irm")]
    out = render(correlation_shift.COMPARISON, {"quick": False, "rows": rows})
    heads, _, hgp, irm = ([cell.strip() for cell in line.split("|")] for line in out.splitlines() if line[:1] == "|")
    place = heads.index("authors' script (train / target / grey target)")
    assert (hgp[place], irm[place]) == ("73.0 / 69.1 / 71.1", "")
    published = [number for number, head in enumerate(heads) if head == "published"]
    assert [hgp[number] for number in published] == ["not verified"] * 3
    assert [irm[number] for number in published] == ["71.0", "65.6 (sd 1.8)", "66.1"]
    assert (hgp[place + 1], irm[place + 1]) == ("[1] [2]", "[3]")
    assert "- [2] the HGP authors' released script" in out


def test_rows_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    threads = [threading.Thread(target=add_row, args=(path, row(n, 1.0)), kwargs={"quick": False}) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each["seed"] for each in load_record(path, quick=False)["rows"]) == list(range(12))


def part(seed: int, **targets: float) -> dict[str, Any]:
    """A row of some of the targets, given by name."""
    accuracy = {"sources": sum(targets.values()) / len(targets) + 1, ORACLE: 90.0 - len(targets), **targets}
    average = sum(targets.values()) / len(targets) if len(targets) > 1 else None
    return row(seed, 0.0, accuracy=accuracy, average=average, given={"target": "+".join(targets)})


def test_parts_of_a_seed_that_left_out_some_of_the_targets_are_one() -> None:
    rows = [
        part(seed, **{name: value + seed}) for seed in (1, 2) for name, value in (("photo", 94.0), ("sketch", 70.0))
    ]
    (line,) = lines_of(rows)
    assert line.seeds == (1, 2)
    assert {name: cell["mean"] for name, cell in line.cells.items()} == {
        "photo": 95.5, "sketch": 71.5, "sources": 84.5, ORACLE: 89.0, "average": 83.5
    }  # fmt: skip
    assert line.by_seed("average") == {"1": 83.0, "2": 84.0}


def test_part_within_a_later_one_is_replaced_and_what_overlaps_has_no_common_mean() -> None:
    (line,) = lines_of([part(1, photo=10.0), part(1, photo=90.0, sketch=70.0)])
    assert (line.seeds, line.cells["average"]["mean"], line.cells["sources"]["mean"]) == ((1,), 80.0, 81.0)
    (line,) = lines_of([part(1, photo=10.0, art=50.0), part(1, photo=90.0, sketch=70.0)])
    assert line.cells["average"]["mean"] == 70.0
    assert not {"sources", ORACLE} & line.cells.keys()


def test_part_that_began_later_counts_wherever_it_stands() -> None:
    def begun(at: str, **targets: float) -> dict[str, Any]:
        return part(1, **targets) | {"environment": {"git_revision": "abc", "started": at}}

    (line,) = lines_of([begun("2026-03", photo=90.0, sketch=95.0), begun("2026-02", photo=11.0)])
    assert line.cells["photo"]["mean"] == 90.0


def test_average_is_of_all_targets_or_not_there() -> None:
    half, whole = lines_of([part(1, photo=90.0) | {"strategy": "hgp"}, part(1, photo=90.0, sketch=70.0)])
    assert whole.cells["average"]["mean"] == 80.0
    assert ("average" in half.cells, half.by_seed("average")) == (False, {"1": None})


def test_strategies_on_other_data_are_not_compared() -> None:
    environment = {"platform": "here", "cpu_count": 2, "git_revision": "abc", "versions": {"torch": "2", "flwr": "1"}}
    common = {"per_domain": 0, "device": "cpu", "environment": environment, "options": {}}
    accuracies = {"erm": (50.0, 52.0), "hgp": (60.0, 63.0), "irm": (70.0, 74.0)}
    rows = [
        row(seed, value, strategy=name, digest="other-data" if name == "irm" else "the-data", **common)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    out = render(correlation_shift.COMPARISON, {"quick": False, "rows": rows})
    assert "+10.5 [" in out
    assert "+21.0" not in out
    assert "irm: data=other-da instead of the-data" in out
