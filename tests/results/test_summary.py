"""The final table: its arithmetic, its honesty about data, trials and missing numbers, and the figure."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy import toy_config

from fedhess.base.errors import StorageError
from fedhess.base.tables import mean_and_error
from fedhess.domains import Benchmark, Scenario
from fedhess.federation.server.run_directory import Row, RunDirectory
from fedhess.jobs.description import header, stand_in_warning
from fedhess.jobs.job import Job, PlannedRun, outline
from fedhess.results.files import rounds_note, rounds_panels, write_report, write_selection, write_summary
from fedhess.results.formats import table
from fedhess.results.selection import read_rows
from fedhess.results.summary import _has_average, name_columns, summarise

DOMAINS = ("north", "south", "west", "east")
Made = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> Made:
    """Make a job with recorded rows: {(strategy, target, seed): accuracy of the target at round 0 and 1}."""

    def make(accuracies: dict[tuple[str, str, int], tuple[float | None, float | None]], **more: Any) -> Job:
        benchmark = Benchmark(
            name="Toy", domains=DOMAINS, classes=("a", "b"), input_shape=(1,), outputs=2, default_model="mlp",
            scenarios=(), loader=pytest.fail, **more,
        )  # fmt: skip
        runs = []
        for (strategy, target, seed), values in accuracies.items():
            targets = tuple(target.split("+"))
            sources = tuple(domain for domain in DOMAINS if domain not in targets)
            config = toy_config(rounds=1, strategy=strategy, seed=seed, sources=sources, targets=targets)
            directory = RunDirectory(tmp_path / strategy / target / str(seed))
            for number, accuracy in enumerate(values):
                directory.append([row(number, domain, "source", 0.5 + number / 10) for domain in sources])
                directory.append([row(number, domain, "target", accuracy) for domain in targets])
            runs.append(PlannedRun(strategy, Scenario(sources, targets, target), config, directory))
        record = {"dataset": outline(benchmark), "strategies": {run.strategy: {} for run in runs}}
        return Job(tmp_path, tuple(runs), record)

    return make


def row(number: int, domain: str, role: str, accuracy: float | None) -> Row:
    distance = 1.0 / (1 + number) if role == "source" else None
    return {
        "round": number, "domain": domain, "role": role, "split": "validation" if role == "source" else "all",
        "examples": 10, "loss": 1.0, "accuracy": accuracy, "gradient_distance": distance, "hgp_distance": distance,
        "failures": [] if accuracy is not None else [{"round": number, "phase": "evaluate", "reason": "gone"}],
    }  # fmt: skip


# -- Arithmetic --------------------------------------------------------------------------------------------------------


def test_standard_error_is_that_of_the_mean() -> None:
    values = [0.2, 0.5, 0.6]
    cell = mean_and_error(values)
    assert cell["mean"] == pytest.approx(100 * statistics.mean(values))
    assert cell["standard_error"] == pytest.approx(100 * statistics.stdev(values) / math.sqrt(3))
    assert cell["trials"] == 3


def test_single_trial_has_no_standard_error() -> None:
    assert mean_and_error([0.5]) == {"mean": 50.0, "standard_error": None, "trials": 1}


def test_missing_trial_makes_no_mean() -> None:
    assert mean_and_error([0.5, None]) == {"mean": None, "standard_error": None, "trials": 1}
    assert mean_and_error([])["mean"] is None


def test_accuracy_is_of_the_selected_round(make_job: Made) -> None:
    summary = summarise(make_job({("erm", "east", 0): (0.9, 0.4)}))
    assert summary["strategies"]["erm"]["accuracy"]["east"]["mean"] == pytest.approx(40), "sources are best at round 1"
    assert summary["strategies"]["erm"]["selected_rounds"] == {"east": [1]}


def test_average_is_over_targets_in_each_trial_then_over_trials(make_job: Made) -> None:
    job = make_job(
        {
            ("erm", "east", 0): (0, 0.2),
            ("erm", "east", 1): (0, 0.4),
            ("erm", "west", 0): (0, 0.8),
            ("erm", "west", 1): (0, 0.6),
        }
    )
    average = summarise(job)["strategies"]["erm"]["average"]
    assert average["mean"] == pytest.approx(50)
    assert average["standard_error"] == pytest.approx(0), "both trials average to 50: their spread cancels"


def test_distances_are_before_and_after_training(make_job: Made) -> None:
    result = summarise(make_job({("erm", "east", 0): (0.1, 0.2)}))["strategies"]["erm"]
    assert result["hgp_distance"] == {"before": 1.0, "after": 0.5}


def test_target_of_two_scenarios_has_two_columns() -> None:
    alone, pair = Scenario(("a", "b"), ("d",), "d"), Scenario(("a", "b"), ("c", "d"), "c+d")
    assert name_columns([alone]) == {("d", "d"): "d"}
    assert name_columns([alone, pair]) == {("d", "d"): "d (of d)", ("c+d", "c"): "c", ("c+d", "d"): "d (of c+d)"}


# -- Honesty -----------------------------------------------------------------------------------------------------------


def test_table_names_data_protocol_seeds_and_selection(make_job: Made) -> None:
    job = make_job({("erm", "east", 3): (0.1, 0.25), ("erm", "east", 4): (0.1, 0.35)})
    text = table(summarise(job))
    assert text.startswith("Toy: accuracy (%) on the target domain, mean +- standard error over trials\n")
    assert (
        "3 source domains, 1 rounds x 1 local steps, model mlp, batch 16, client lr 0.1, server SGD lr 1, seeds 3, 4"
        in text
    )
    assert "selection by source validation" in text
    assert "| erm      | 30.0 +- 5.0 |" in text


def test_table_of_one_trial_claims_no_error(make_job: Made) -> None:
    text = table(summarise(make_job({("erm", "east", 0): (0.1, 0.25)})))
    assert "+-" not in text
    assert "one trial" in text


def test_missing_number_is_not_available_and_failures_are_counted(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, None), ("erm", "west", 0): (0.1, 0.3)})
    summary = summarise(job)
    text = table(summary)
    assert "| erm      |  n/a | 30.0 |     n/a |" in text
    assert "1 failure(s) of clients: see rounds.jsonl" in text
    assert summary["strategies"]["erm"]["average"]["mean"] is None


def test_run_without_any_complete_round_is_not_available(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.3)})
    directory = job.runs[0].directory
    rows = [row | ({"accuracy": None} if row["domain"] == "north" else {}) for row in directory.rows()]
    directory.rounds_file.unlink()
    directory.append(rows)
    summary = summarise(job)
    assert summary["strategies"]["erm"]["selected_rounds"] == {"east": [None]}
    assert "| erm      |  n/a |" in table(summary)
    assert table(summary).endswith(
        "\n\ngaps (a round that fewer source clients evaluated than the quorum does not count):\n"
        "- erm, target east, seed 0: 1 of 1 evaluated rounds (1)"
    )


def test_table_is_aligned(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.25), ("a-strategy-with-a-long-name", "east", 0): (0.1, 1.0)})
    lines = [line for line in table(summarise(job)).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 4


def test_stand_in_is_named_in_titles_header_and_warning_and_names_of_files_are_constant(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.25)}, stand_in_for="PACS")
    summary = summarise(job)
    assert table(summary).startswith("Toy (stand-in for PACS): accuracy")
    names = ["summary.json", "summary.md", "figures/rounds.png", "figures/rounds.svg"]
    assert write_report(job, summary) == [job.path / name for name in names]
    assert header(job, engine="in-process")["data"] == "Toy (stand-in for PACS)"
    assert "Toy stands in for PACS" in stand_in_warning(job)
    assert "say nothing about PACS" in stand_in_warning(job)


# -- Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rendered_figures")
def test_report_is_made_again_from_the_rows_alone(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.25), ("hgp", "east", 0): (0.1, 0.5)})
    summary = summarise(job)
    as_json, as_text, figure, _ = write_report(job, summary)
    assert json.loads(as_json.read_text()) == summary
    assert as_text.read_text() == table(summary) + "\n"
    first = [as_json.read_bytes(), as_text.read_bytes()]
    assert [path.read_bytes() for path in write_summary(job, summarise(job))] == first
    with Image.open(figure) as image:
        assert image.size[0] == 1750, "7 inches, two columns of a paper"
        assert len(image.convert("RGB").getcolors(2**20) or []) > 20, "something is drawn"


def test_unwritable_report_is_named(make_job: Made, tmp_path: Path) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.25)})
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write to .*: File exists; free space or fix the permissions"):
        write_report(job, summarise(job))


def write_selectors(job: Job, summary: dict[str, Any]) -> list[Path]:
    return write_selection(job, {"source": summary})


@pytest.mark.parametrize("write", [write_report, write_selectors])
def test_report_that_cannot_be_finished_leaves_the_one_before(make_job: Made, write: Callable[..., list[Path]]) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.25)})
    summary = summarise(job)
    files = write(job, summary)[:2]
    before = [file.read_bytes() for file in files]
    for file in files:
        draft = file.with_name(f".{file.name}.new")
        draft.mkdir()  # in the way of the draft
        with pytest.raises(StorageError, match="cannot write to"):
            write(job, summary | {"title": "another"})
        assert [file.read_bytes() for file in files[files.index(file) :]] == before[files.index(file) :]
        draft.rmdir()


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (("east", "west"), {"accuracy (%), mean over 2 targets": 40.0}),
        (("east+west",), {"accuracy (%) on east": 30.0, "accuracy (%) on west": 30.0}),
        (("east+\U0010fffd",), {"accuracy (%) on east": 30.0, "accuracy (%) on target 2": 30.0}),
    ],
)
def test_figure_averages_targets_where_the_table_does(
    make_job: Made, targets: tuple[str, ...], labels: dict[str, float]
) -> None:
    job = make_job({("erm", target, 0): (0.1, 0.3 + 0.2 * number) for number, target in enumerate(targets)})
    *accuracies, gradient, _ = rounds_panels(job, summarise(job), read_rows(job))
    assert {panel.label: panel.curves["erm"][1]["mean"] for panel in accuracies} == pytest.approx(labels)
    numbered = "accuracy (%) on target 2" in labels
    assert ("a number stands for a name in the table" in rounds_note(job, summarise(job))) == numbered
    assert (gradient.label, gradient.curves["erm"][1]["mean"]) == ("gradient distance of the sources", 0.5)


def test_several_targets_of_one_scenario_are_not_averaged(make_job: Made) -> None:
    job = make_job({("erm", "east", 0): (0.1, 0.3), ("erm", "west", 0): (0.1, 0.5)})
    assert "40.0" in table(summarise(job))
    one_scenario = summarise(job) | {"averaged": False}
    assert "average |" not in table(one_scenario)
    assert _has_average({("flip-0.9+grey", "flip-0.9"): "flip-0.9", ("flip-0.9+grey", "grey"): "grey"}) is False
