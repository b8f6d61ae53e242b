"""What tables and figures make of counts: at the selected rounds, trial by trial, nothing where one lacks them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from rows import source, target
from toy import toy_config

from fedhess.domains import Benchmark, Scenario
from fedhess.federation.server.run_directory import Row, RunDirectory
from fedhess.jobs.job import Job, PlannedRun, outline
from fedhess.results.figures import draw_confusions
from fedhess.results.files import target_confusions, write_report
from fedhess.results.formats import table
from fedhess.results.selection import read_rows
from fedhess.results.summary import summarise

DOMAINS = ("north", "south", "west", "east")
Confusion = list[list[int]]


def counts(confusion: Confusion) -> Row:
    total = sum(count for *_, count in confusion)
    right = sum(count for label, guess, count in confusion if label == guess)
    bins = [[0, 0, 0.0] for _ in range(14)] + [[total, right, 1.0 * total]]
    return {"examples": total, "accuracy": right / total, "confusion": confusion, "calibration": bins}


@pytest.fixture
def make_job(tmp_path: Path) -> Any:
    """Make a job from {(strategy, targets, seed): by target the confusion at the selected round, None for none}."""

    def make(of: dict[tuple[str, str, int], dict[str, Confusion | None]]) -> Job:
        benchmark = Benchmark(
            name="Toy", domains=DOMAINS, classes=("a", "b", "c"), input_shape=(1,), outputs=3, default_model="mlp",
            scenarios=(), loader=pytest.fail,
        )  # fmt: skip
        runs = []
        for (strategy, name, seed), targets in of.items():
            sources = tuple(domain for domain in DOMAINS if domain not in targets)
            config = toy_config(rounds=2, strategy=strategy, seed=seed, sources=sources, targets=tuple(targets))
            directory = RunDirectory(tmp_path / strategy / name / str(seed))
            for number, on_sources in enumerate((0.1, 0.9, 0.5)):  # the first round is selected
                directory.append([source(number, domain, on_sources) for domain in sources])
                for domain, confusion in targets.items():
                    row = target(number, 0.0, domain=domain)
                    other = counts([[0, 1, 7]])
                    found = {} if confusion is None else counts(confusion) if number == 1 else other
                    directory.append([row | found])
            runs.append(PlannedRun(strategy, Scenario(sources, tuple(targets), name), config, directory))
        record = {"dataset": outline(benchmark), "strategies": {run.strategy: {} for run in runs}}
        return Job(tmp_path, tuple(runs), record)

    return make


TWO_TARGETS: dict[tuple[str, str, int], dict[str, Confusion | None]] = {
    ("erm", "east", 0): {"east": [[0, 0, 8], [1, 0, 2]]},  # 0.8; of the classes 1, 0 and none
    ("erm", "east", 1): {"east": [[0, 0, 6], [0, 1, 2], [1, 1, 2]]},  # 0.8; 0.75, 1
    ("erm", "west", 0): {"west": [[2, 2, 9], [2, 0, 1]]},  # 0.9
    ("erm", "west", 1): {"west": [[2, 2, 5], [2, 0, 5]]},  # 0.5
}


def test_metrics_of_counts_are_means_over_trials_at_the_selected_round(make_job: Any) -> None:
    summary = summarise(make_job(TWO_TARGETS))
    erm = summary["strategies"]["erm"]
    assert summary["classes"] == ["a", "b", "c"]
    assert erm["balanced_accuracy"]["east"]["mean"] == pytest.approx(100 * (0.5 + 0.875) / 2)
    assert erm["worst_class_accuracy"]["east"]["mean"] == pytest.approx(100 * (0 + 0.75) / 2)
    assert erm["calibration_error"]["west"]["mean"] == pytest.approx(100 * (0.1 + 0.5) / 2)
    assert erm["class_accuracy"] == {"east": [pytest.approx(87.5), pytest.approx(50), None], "west": [None, None, 70]}
    average = ((0.5 + 0.9) / 2 + (0.875 + 0.5) / 2) / 2
    assert erm["averages"]["balanced_accuracy"]["mean"] == pytest.approx(100 * average)


def test_the_worst_target_is_that_of_each_trial(make_job: Any) -> None:
    summary = summarise(make_job(TWO_TARGETS))
    worst = summary["strategies"]["erm"]["worst_domain"]
    assert worst["mean"] == pytest.approx(100 * (0.8 + 0.5) / 2), "east in one trial, west in the other"
    text = table(summary)
    assert "mean over the targets; ECE: calibration error, 15 bins; worst target: the lowest accuracy" in text
    assert "| erm      |       69.4 +- 0.6 | 53.8 +- 8.8 | 25.0 +- 10.0 | 65.0 +- 15.0 |" in text
    one = summarise(make_job({("erm", "east", 5): {"east": [[0, 0, 8]]}}))["strategies"]["erm"]
    assert one["worst_domain"]["mean"] is None, "one target is no worst"


def test_targets_that_are_not_averaged_have_a_line_each(make_job: Any) -> None:
    both: dict[str, Confusion | None] = {"east": [[0, 0, 8], [1, 0, 2]], "west": [[2, 2, 10]]}
    lines = table(summarise(make_job({("erm", "east+west", 0): both}))).splitlines()
    assert "| erm      | east   |              50.0 |         0.0 | 20.0 |         80.0 |" in lines
    assert "| erm      | west   |             100.0 |       100.0 |  0.0 |         80.0 |" in lines


def test_rows_without_counts_have_no_section_and_no_figure(make_job: Any) -> None:
    old = make_job({("erm", "east", 0): {"east": None}, ("erm", "east", 1): {"east": [[0, 0, 8]]}})
    summary = summarise(old)
    assert summary["strategies"]["erm"]["balanced_accuracy"]["east"]["mean"] is None
    assert summary["strategies"]["erm"]["class_accuracy"]["east"] == [None] * 3
    assert "ECE" not in table(summary)
    assert not [path for path in write_report(old, summary) if "confusion" in path.name]


@pytest.mark.usefixtures("rendered_figures")
def test_confusions_of_the_trials_are_added_up_and_drawn(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(TWO_TARGETS)
    found = target_confusions(job, read_rows(job))
    assert found["east"]["erm"] == [[0, 0, 14], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    drawn: list[np.ndarray] = []
    show = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda axis, grid, **more: (drawn.append(grid), show(axis, grid, **more))[1])
    file = job.path / "confusion.png"
    draw_confusions(file, title="Toy", note="", classes=["a", "b", "c"], panels=found["east"], endings=(".png",))
    np.testing.assert_allclose(drawn, [[[87.5, 12.5, 0], [50, 50, 0], [np.nan] * 3]])
    assert file.exists()
