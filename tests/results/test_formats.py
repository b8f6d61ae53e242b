"""The table in its forms: what is marked, and that LaTeX and CSV can be read by what reads them."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from recorded import record_job

from fedhess.base.errors import UsageError
from fedhess.results.formats import (
    BEST,
    FORMATS,
    SECOND,
    TIED,
    csv_table,
    latex_table,
    latex_text,
    mark_best,
    selector_table,
    table,
)
from fedhess.results.page import render_page
from fedhess.results.results import open_results
from fedhess.results.selection import read_rows
from fedhess.results.summary import summarise

HOSTILE = r"x_1 & 5 % #{$}~^\ <b>"


def summary(path: Path, accuracies: dict[str, tuple[float | None, ...]], **more: Any) -> dict[str, Any]:
    """Summarise a job of strategies, each with its accuracy on east in three trials, and one better on west."""
    recorded = {
        (name, target, seed): (0.1, value if target == "east" or value is None else value + 0.1)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
        for target in ("east", "west")
    }
    return summarise(record_job(path, recorded, **more))


THREE = {"erm": (0.50, 0.52, 0.54), "hgp": (0.60, 0.62, 0.64), "irm": (0.60, 0.61, 0.63)}


def test_best_second_and_tie_within_one_standard_error_are_marked(tmp_path: Path) -> None:
    found = summary(tmp_path, THREE | {"coral": (0.59, 0.61, 0.63), "vrex": (None, 0.9, 0.9)})
    marks = {name: mark_best(found)[name, "east"] for name in found["strategies"]}
    assert marks == {
        "erm": frozenset(), "hgp": {BEST}, "irm": {SECOND, TIED}, "coral": {TIED}, "vrex": frozenset()
    }, "the best has a standard error of 1.15; a strategy that lacks a trial has no mean"  # fmt: skip
    same = summary(tmp_path / "same", {"erm": (0.5, 0.7), "hgp": (0.7, 0.5), "irm": (0.1, 0.3)})
    assert {name: mark_best(same)[name, "east"] for name in same["strategies"]} == {
        "erm": {BEST}, "hgp": {BEST}, "irm": frozenset()
    }  # fmt: skip
    alone = summary(tmp_path / "alone", {"erm": (0.5, 0.7)})
    assert not any(mark_best(alone).values())
    once = summary(tmp_path / "once", {"erm": (0.5,), "hgp": (0.5001,)})
    assert not any(TIED in each for each in mark_best(once).values()), "one trial has no standard error"


def test_what_is_unfinished_or_no_average_is_marked_in_every_form(tmp_path: Path) -> None:
    job = record_job(tmp_path, {("erm", "east", 0): (0.1, 0.5), ("hgp", "east", 0): (0.1, 0.6)})
    for run in job.runs:
        rows = [row | {"averaged": int(run.strategy == "erm")} for row in run.directory.rows()]
        run.directory.rounds_file.unlink()
        run.directory.append(rows)
    found = summarise(job)
    said = "no average had begun, so that the model itself is reported: hgp 1 of 1"
    assert found["strategies"]["erm"]["not_averaged"] == ""
    assert all(said in text for text in (table(found), latex_table(found), render_page(job, found, [], {})))
    found["strategies"]["hgp"]["incomplete"] = {"east": "1 left to run"}
    assert "| **60.0** ! | +10.0 ! |" in " ".join(table(found).split())
    assert r"\textbf{60.0}$^\ddagger$ & $+10.0$$^{\ddagger}$" in latex_table(found)
    assert "+10.0 !" in render_page(job, found, [], {})
    by_two = selector_table({"source": summarise(job), "lodo": found})
    assert "| 60.0 | 60.0 ! |" in " ".join(by_two.split())
    assert "- hgp, east: 1 left to run" in by_two


def test_markdown_marks_cells_and_shows_differences_with_their_stars(tmp_path: Path) -> None:
    text = table(summary(tmp_path, THREE))
    assert FORMATS["markdown"] is table
    lines = text.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    cells = {line.split("|")[1].strip(): line for line in lines}
    assert "| **62.0 +- 1.2** |" in cells["hgp"]
    assert "| _61.3 +- 0.9_ ~ |" in cells["irm"]
    assert "+9.3 [+7.9, +10.8] **" in cells["irm"]
    assert "to erm: difference in percentage points, paired by seed, with its 95 % confidence interval" in text


def test_a_strategy_is_named_that_fits_the_sources_worse_by_more_than_seeds_do(tmp_path: Path) -> None:
    worse = {"erm": (0.0, 0.0, 0.0), "hgp": (0.06, 0.07, 0.08), "irm": (0.0, 0.09, 0.0), "fish": (-0.1, -0.1, -0.11)}
    accuracies = {(name, "east", seed): (0.1, 0.5, 0.5) for name in worse for seed in range(3)}
    job = record_job(tmp_path, accuracies)
    recorded = [
        (run, [
            {**row, "accuracy": row["accuracy"] - row["round"] * worse[run.strategy][run.config.seed]}
            if row["role"] == "source" else row for row in rows
        ])
        for run, rows in read_rows(job)
    ]  # fmt: skip
    by_sources = summarise(job, recorded)
    text = table(by_sources)
    lines = text.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    cells = {line.split("|")[1].strip(): line for line in lines}
    assert "| 42.0 +- 0.0 |" in cells["erm"]
    assert "| 34.0 +- 0.6 |" in cells["hgp"]
    section = text.partition("less accurate on the sources than the baseline")[2].splitlines()[1:]
    assert section[0] == "- hgp: -8.0 [-10.5, -5.5] points"
    assert section[1:2] in ([], [""]), "irm's loss may be chance, and fish gains"
    of_two = selector_table({"source": by_sources, "oracle": summarise(job, recorded, selection="oracle")})
    assert [line for line in of_two.splitlines() if line.endswith(" points")] == [section[0]]


def test_latex_is_a_booktabs_table_with_as_many_cells_in_each_line(tmp_path: Path) -> None:
    lines = latex_table(summary(tmp_path, THREE)).splitlines()
    text = [line.strip() for line in lines]
    columns = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", next(line for line in text if "{tabular}{" in line))
    assert columns is not None
    assert columns[1] == "lrrrl"
    rules = [line for line in text if line in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = text[text.index(r"\toprule") + 1 : text.index(r"\bottomrule")]
    rows.remove(r"\midrule")
    assert all(row.endswith(r" \\") for row in rows)
    assert {len(row.split("&")) for row in rows} == {5}
    assert rows[2].startswith(r"hgp & \textbf{62.0} $\pm$ 1.2 &")
    assert rows[3].startswith(r"irm & \underline{61.3}$^\dagger$ $\pm$ 0.9 &")
    assert rows[3].endswith(r"$+9.3$ $[+7.9, +10.8]$$^{**}$ \\")
    begun, ended = ([line for line in text if line.startswith(rf"\{word}")] for word in ("begin", "end"))
    assert [line.partition("}")[0][6:] for line in begun] == [line.partition("}")[0][4:] for line in reversed(ended)]


def test_latex_names_data_protocol_seeds_stand_in_and_what_is_not_finished(tmp_path: Path) -> None:
    found = summary(tmp_path, THREE, title="Toy (stand-in for PACS)", stand_in_for="PACS", rounds=3)
    (caption,) = re.findall(r"\\caption\{(.*)\}$", latex_table(found), re.M)
    assert caption.startswith(r"Toy (stand-in for PACS): accuracy (\%) on the target domain, mean $\pm$ standard error")
    for part in ("seeds 0, 1, 2", "selection by source validation", "UNFINISHED: 18 of 18 runs", "Holm"):
        assert part in caption


def test_latex_escapes_what_users_name(tmp_path: Path) -> None:
    found = summary(tmp_path, {"erm": (0.5,), HOSTILE: (0.6,)})
    found["arguments"] = {HOSTILE: "a=1\n\\input{x}"}
    text = latex_table(found)
    escaped = r"x\_1 \& 5 \% \#\{\$\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}b\textgreater{}"
    assert latex_text(HOSTILE) == escaped
    assert f"\n    {escaped} & " in text
    assert "\n\\input" not in text, "a comment stays on its line"
    assert latex_text("a\nb\x00c") == "a b c"
    assert latex_text('"a"') == "''a''", "no command that only other encodings of fonts know"


def test_csv_has_full_precision_and_names_data_and_protocol_in_each_row(tmp_path: Path) -> None:
    found = summary(tmp_path, THREE | {HOSTILE + ',"\n': (None, 0.5, 0.5)})
    rows = list(csv.DictReader(io.StringIO(csv_table(found))))
    assert len(rows) == 4 * 4, "two targets, their average and the sources"
    assert {(row["dataset"], row["protocol"]) for row in rows} == {("Toy", found["protocol"])}
    by_place = {(row["strategy"], row["column"]): row for row in rows}
    irm = by_place["irm", "average"]
    cell = found["comparison"]["strategies"]["irm"]["average"]
    assert (irm["mark"], irm["baseline"], irm["pairs"], irm["trials"]) == ("second tied", "erm", "3", "3")
    assert {key: float(irm[key]) for key in ("difference", "low", "high", "p", "p_holm")} == {
        key: cell[key] for key in ("difference", "low", "high", "p", "p_holm")
    }
    assert by_place["erm", "average"]["difference"] == "", "the baseline"
    assert by_place[HOSTILE + ',"\n', "east"]["mean"] == ""
    assert float(by_place["erm", "sources"]["mean"]) == pytest.approx(41)


def test_python_gives_the_forms_of_a_recorded_job(tmp_path: Path) -> None:
    record_job(tmp_path, {("erm", "east", 0): (0.1, 0.5)})
    results = open_results(tmp_path)
    assert results.format("latex") == latex_table(results.summary)
    with pytest.raises(UsageError, match="unknown format 'html'; known: "):
        results.format("html")
