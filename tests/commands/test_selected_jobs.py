"""Jobs of the real command with several settings, cross-validation and split targets; reports of their rows alone."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedhess import report, simulate
from fedhess.domains import BENCHMARKS
from fedhess.federation.server.run_directory import Row, RunDirectory
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.selectors import ORACLE, SELECTORS
from fedhess.results.selection import cells_of, choose, read_rows
from tests.conftest import Outcome, run_apart

FREE = ["--domains", "Toy", "--domains-args", "holdout=0.25,free=true", "--rounds", "2", "--local-steps", "1"]
FREE += ["--batch-size", "8", "--server-optimizer", "SGD", "--server-lr", "1", "--evaluate-every", "1", "--l2", "0"]
FULL = [*FREE, "--strategy", "erm,hgp", "--variants", "lr=0.1; lr=0.02; lr=0.1,alpha=0.01", "--selection", "lodo"]
FULL += ["--split", "every", "--trials", "1", "--target", "east,west"]

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A job with two strategies, three settings and cross-validation, and what was printed; read only."""
    path = tmp_path_factory.mktemp("selected") / "job"
    return path, run_apart(simulate, *FULL, "--out", path)


@pytest.fixture
def job(recorded: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the job's records: no checkpoints, no weights."""
    shutil.copytree(recorded[0], tmp_path / "job", ignore=shutil.ignore_patterns("checkpoint"))
    return tmp_path / "job"


@pytest.fixture
def reported(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``python -m fedhess.report`` in this process, where the benchmark is not known."""
    monkeypatch.delitem(BENCHMARKS, "Toy")
    return partial(command, of=report)


def change_rows(job: Path, change: Callable[[Path, list[Row]], list[Row]]) -> None:
    for file in job.rglob("rounds.jsonl"):
        directory = RunDirectory(file.parent)
        rows = change(file, directory.rows())
        file.unlink()
        directory.append(rows)


# -- What runs ---------------------------------------------------------------------------------------------------------


def test_cost_is_said_before_anything_runs(recorded: tuple[Path, str]) -> None:
    lines = recorded[1].splitlines()
    # 2 targets x (2 settings of erm + 3 of hgp); 5 pairs hold east or west.
    expected = (
        "10, 2 (erm), 3 (hgp) settings among them and 25 more for cross-validation: 35 runs, 70 rounds of training"
    )
    (said,) = [number for number, line in enumerate(lines) if line.startswith("runs ")]
    assert lines[said].split(maxsplit=1) == ["runs", expected]
    assert said < min(number for number, line in enumerate(lines) if line.startswith("["))
    assert sum(line.startswith("[") for line in lines) >= 35


def test_targets_table_is_of_the_targets_alone_and_says_how_it_came_about(recorded: tuple[Path, str]) -> None:
    summary = json.loads((recorded[0] / "summary.json").read_text())
    assert summary["targets"] == ["west", "east"] or summary["targets"] == ["east", "west"]
    assert summary["selection"] == ["leave-one-domain-out cross-validation"]
    assert "selection among 2 (erm), 3 (hgp) settings by leave-one-domain-out cross-validation" in summary["protocol"]
    assert "every domain split, 2 rounds x 1 local steps" in summary["protocol"]
    assert "client lr varied" in summary["protocol"]
    settings = summary["strategies"]["hgp"]["selected_settings"]
    assert set(settings) == {"east", "west"}
    assert {setting for each in settings.values() for setting in each} <= {"lr=0.1", "lr=0.02", "lr=0.1, alpha=0.01"}
    assert "oracle" not in recorded[1]


# -- What is selected --------------------------------------------------------------------------------------------------


def test_selectors_choose_what_a_search_through_the_files_does(job: Path) -> None:
    opened = open_recorded(job)
    rows = {str(run.directory.path.relative_to(job)): run.directory.rows() for run in opened.runs}

    def mean(path: str, number: int, role: str, split: str, domains: tuple[str, ...] = ()) -> float:
        found = [
            row["accuracy"]
            for row in rows[path]
            if (row["round"], row["role"], row["split"]) == (number, role, split)
            and (not domains or row["domain"] in domains)
        ]
        return sum(found) / len(found)

    for cell in cells_of(read_rows(opened), "hgp"):
        (target,), seed = cell.scenario.targets, cell.seed

        def inner(number: int, variant: int, target: str = target, seed: int = seed) -> float:
            values = []
            for source in {"north", "south", "west", "east"} - {target}:
                both = "+".join(name for name in ("north", "south", "west", "east") if name in (target, source))
                values.append(mean(f"hgp/variant-{variant}/{both}/{seed}", number, "target", "in", (source,)))
            return sum(values) / 3

        paths = [f"hgp/variant-{variant}/{target}/{seed}" for variant in range(3)]
        grid = [(variant, number) for variant in range(3) for number in range(3)]
        best = {
            "source": max(mean(paths[v], n, "source", "validation") for v, n in grid),
            "lodo": max(inner(n, v) for v, n in grid),
            "oracle": max(mean(paths[v], 2, "target", "out") for v in range(3)),
        }
        for selector, value in best.items():
            choice, chosen_rows = cell.choose(selector)
            assert choice is not None
            assert choice.accuracy == pytest.approx(value), selector
            assert chosen_rows == rows[paths[choice.candidate]]
            assert selector != "oracle" or choice.server_round == 2


def test_target_rows_are_not_read_by_selection(job: Path) -> None:
    def chosen(selector: str) -> list[Any]:
        cells = cells_of(read_rows(open_recorded(job)), "hgp")
        return [
            choose(selector, cell.candidates, cell.scenario.targets) for cell in cells if cell.scenario.name == "east"
        ]

    before = {selector: chosen(selector) for selector in ("source", "lodo", "oracle")}

    def scramble(file: Path, rows: list[Row]) -> list[Row]:
        """Turn east's accuracies and losses round, wherever it is a target, and drop some."""
        number = 0
        for row in rows:
            if row["domain"] == "east" and row["role"] == "target":
                number += 1
                row["accuracy"] = None if number % 5 == 0 and row["round"] < 2 else 1 - (row["accuracy"] or 0)
                row["loss"] = number
        return rows

    change_rows(job, scramble)
    assert chosen("source") == before["source"]
    assert chosen("lodo") == before["lodo"]
    assert chosen("oracle") != before["oracle"], "the scrambling is strong enough to be seen"


# -- Reports -----------------------------------------------------------------------------------------------------------


def test_report_needs_nothing_but_rows_and_compares_the_selectors(job: Path, reported: Command) -> None:
    done = reported(job, "--selection", "all")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "Toy: accuracy (%) on the target domain by what it was selected by, one trial"
    head = next(line for line in lines if line.startswith("| strategy"))
    names = ["strategy", "target", "source validation", "leave-one-domain-out cross-validation", ORACLE]
    assert [cell.strip() for cell in head.strip("|").split("|")] == names
    assert "the oracle takes the last round, and the setting that is best on the target: a bound, no result" in lines
    assert "selection among" not in lines[1], "each column has its own"
    assert (job / "selection.md").read_text().strip() in done.out
    compared = json.loads((job / "selection.json").read_text())
    assert list(compared) == ["source", "lodo", "oracle"]
    assert compared["lodo"] == json.loads((job / "summary.json").read_text()), "what the job itself reported"
    assert compared["oracle"]["selection"] == [ORACLE]
    selected = compared["oracle"]["strategies"]["erm"]["selected_rounds"]
    assert selected == {"east": [2], "west": [2]}


def test_report_is_by_the_jobs_own_selector_and_never_by_the_oracle(job: Path, reported: Command) -> None:
    before = (job / "summary.json").read_bytes()
    (job / "summary.json").unlink()
    done = reported(job)
    assert done.status == 0, done.err
    assert "selection among 2 (erm), 3 (hgp) settings by leave-one-domain-out cross-validation" in done.out
    assert "oracle" not in done.out
    names = ("summary.json", "summary.md", "table.tex", "table.csv", "report.html")
    written = ", ".join(f"{job}/{name}" for name in names)
    figures = {file.name for file in (job / "figures").iterdir()}
    assert done.out.endswith(f"written: {written} and {len(figures)} figures in {job}/figures\n")
    widths, endings = ("", "-column"), ("png", "svg", "pdf")
    assert figures == {
        *(f"{name}{width}.{e}" for name in ("rounds", "bytes", "domains") for width in widths for e in endings),
        *(f"confusion_{target}.{e}" for target in ("east", "west") for e in endings),
    }
    assert "selected by leave-one-domain-out cross-validation" in (job / "report.html").read_text()
    assert not (job / "selection.md").exists()
    assert (job / "summary.json").read_bytes() == before, "what the job itself reported"
    assert b"oracle" not in before
    assert reported(job, "--selection", "source").status == 0
    assert (job / "summary.json").read_bytes() == before, "another selector's table is selection.md"
    assert "source validation" in (job / "selection.md").read_text()


@pytest.mark.parametrize("selection", ["oracle", "lod", 3])
def test_recorded_selector_that_a_job_cannot_have_is_damage(job: Path, reported: Command, selection: object) -> None:
    alter(job, lambda config: config.update(selection=selection))
    done = reported(job)
    assert done.status == 2
    assert f"config.json is damaged (ValueError: selection: got {selection!r})" in done.err


def test_job_recorded_before_selectors_were_is_by_source_validation(job: Path, reported: Command) -> None:
    alter(job, lambda config: config.pop("selection"))
    done = reported(job, "--format", "csv")
    assert done.status == 0, done.err
    assert "selection among 2 (erm), 3 (hgp) settings by source validation" in done.out


@pytest.mark.parametrize(("form", "begins"), [("latex", r"% \usepackage{booktabs}"), ("csv", "dataset,protocol,")])
def test_report_prints_the_table_in_another_form_alone(job: Path, reported: Command, form: str, begins: str) -> None:
    (job / "summary.json").unlink()
    done = reported(job, "--format", form, "--selection", "oracle")
    assert done.status == 0, done.err
    assert done.out.startswith(begins)
    assert "selection among 2 (erm), 3 (hgp) settings by oracle (looks at the target)" in done.out
    assert not (job / "summary.json").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "latx"), "--format: unknown format 'latx'; did you mean 'latex'? known: latex, markdown, csv"),
        (
            ("--format", "csv", "--selection", "all"),
            "--format: expected one selector to print, got source, lodo, oracle",
        ),
        (("--format", "csv", "--json"), "--format csv and --json are two forms; give one of them"),
    ],
)
def test_form_that_cannot_be_printed_is_named(
    job: Path, reported: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = reported(job, *arguments)
    assert done.status == 2
    assert message in done.err


def test_report_as_json_is_json_alone(job: Path, reported: Command) -> None:
    done = reported(job, "--selection", "oracle", "--json")
    assert list(json.loads(done.out)) == ["oracle"]
    assert done.err == ""


def test_unfinished_run_is_named_and_its_cell_is_not_available(job: Path, reported: Command) -> None:
    stopped = job / "erm" / "variant-0" / "east" / "0"

    def cut(file: Path, rows: list[Row]) -> list[Row]:
        if file.parent == stopped:
            return [row for row in rows if row["round"] < 2]
        return [] if file.parent.match("erm/variant-1/east/0") else rows

    change_rows(job, cut)
    done = reported(job, "--selection", "source,oracle", "--quiet")
    assert done.status == 0
    assert done.out == (job / "selection.md").read_text()
    assert "2 of 35 runs are not finished, the first" in done.err
    assert "erm/variant-0/east/0" in done.err.replace("\n", "").replace(" | | ", "").replace("|", "").replace(" ", "")
    found = json.loads((job / "selection.json").read_text())
    east = {name: found[name]["strategies"]["erm"]["accuracy"]["east"]["mean"] for name in found}
    assert east["source"] is not None, "it is selected among the rounds it has"
    assert east["oracle"] is None


def test_cross_validation_that_is_not_recorded_is_named(job: Path, reported: Command) -> None:
    shutil.rmtree(job / "hgp" / "variant-1" / "south+east" / "0")
    done = reported(job, "--selection", "lodo")
    assert done.status == 2
    assert "--selection lodo: " in done.err
    assert "has no run of hgp without east and south (seed 0); add what is missing: fedhess simulate --out" in done.err
    assert reported(job, "--selection", "source").status == 0


def without_inner_runs(job: Path) -> None:
    for folder in job.glob("*/*/*+*"):
        shutil.rmtree(folder)


def with_three_domains(job: Path) -> None:
    alter(job, lambda config: config["dataset"]["counts"].pop("north"))


def without_held_out(job: Path) -> None:
    change_rows(job, lambda _, rows: [row | ({"split": "train"} if row["role"] == "source" else {}) for row in rows])


@pytest.mark.parametrize(
    ("change", "selector", "why"),
    [
        (
            without_inner_runs,
            "lodo",
            "has no run of erm without east and north (seed 0); add what is missing: fedhess simulate",
        ),
        (with_three_domains, "lodo", "expected at least three sources for target east, so that two are left to align"),
        (without_held_out, "source", "2 settings cannot be told apart by source validation"),
    ],
)
def test_all_shows_what_can_be_shown_and_names_what_it_leaves_out(
    job: Path, reported: Command, change: Callable[[Path], None], selector: str, why: str
) -> None:
    change(job)
    alone = reported(job, "--selection", selector)
    assert alone.status == 2
    assert why in alone.err
    done = reported(job, "--selection", "all")
    assert done.status == 0, done.err
    (named,) = [line for line in done.out.splitlines() if line.startswith("left out: ")]
    assert named.startswith(f"left out: {SELECTORS[selector]}: ")
    assert why in named
    found = json.loads((job / "selection.json").read_text())
    assert {name for name in found if "left_out" in found[name]} == {selector}
    head = next(line for line in done.out.splitlines() if line.startswith("| strategy"))
    assert head.count("|") == 5, "two selectors of three"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda job: (job / "config.json").unlink(), "is no job's directory: expected one that fedhess.simulate wrote"),
        (lambda job: (job / "config.json").write_text("{"), "config.json is damaged"),
        (
            lambda job: alter(job, lambda c: c["dataset"].pop("counts")),
            r"config.json is damaged \(KeyError: 'counts'\)",
        ),
        (
            lambda job: alter(job, lambda c: c["settings"].update(roundz=3)),
            "cannot be read as it was written: --roundz",
        ),
        (lambda job: (job / "erm/variant-0/east/0/rounds.jsonl").write_text("no\n"), "rounds.jsonl is damaged"),
    ],
)
def test_damaged_record_is_named(job: Path, reported: Command, damage: Callable[[Path], Any], message: str) -> None:
    damage(job)
    done = reported(job)
    assert done.status == 2
    assert re.search(message, done.err), done.err


def alter(job: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((job / "config.json").read_text())
    change(config)
    (job / "config.json").write_text(json.dumps(config))
