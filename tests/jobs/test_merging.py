"""Jobs of one protocol in one table, and the states of their runs."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from recorded import record_job

from fedhess import report, simulate
from fedhess.base.errors import UsageError
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.directory import job_directory
from fedhess.jobs.job import Job, make_job
from fedhess.jobs.merging import merge_jobs
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.search import variant_of
from fedhess.results.page import render_page
from fedhess.results.results import Results
from fedhess.results.run_states import list_runs
from fedhess.results.summary import summarise
from tests.conftest import Outcome, run_apart

FREE = ["--domains", "Toy", "--domains-args", "holdout=0.25,free=true", "--local-steps", "1", "--batch-size", "8"]
FREE += ["--lr", "0.1", "--evaluate-every", "1", "--l2", "0", "--server-optimizer", "SGD", "--server-lr", "1"]
FREE += ["--rounds", "2", "--target", "east"]
JOBS = {
    "erm": ["--strategy", "erm", "--trials", "2"],
    "both": ["--strategy", "hgp,erm", "--trials", "1"],
    "strong": ["--strategy", "hgp", "--strategy-args", "alpha=0.5", "--trials", "1"],
    "fast": ["--strategy", "hgp", "--lr", "0.2", "--trials", "1"],
    "west": ["--strategy", "erm", "--trials", "1", "--target", "west", "--seed", "1"],
    "varied": ["--strategy", "erm", "--trials", "1", "--variants", "lr=0.1; lr=0.3"],
    "other": ["--strategy", "erm", "--trials", "1", "--rounds", "3", "--domains-args", "free=true,holdout=0.5"],
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several small jobs; read only."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "write", lambda self: [])
        for name, options in JOBS.items():
            run_apart(simulate, *FREE, *options, "--quiet", "--out", folder / name)
    return folder


@pytest.fixture
def reported(command: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return partial(command, of=report)


def merged(recorded: Path, *names: str) -> Job:
    return merge_jobs([open_recorded(recorded / name) for name in names])


def runs(job: Job) -> list[tuple[str, str, int]]:
    return [(run.strategy, run.scenario.name, run.config.seed) for run in job.runs]


def test_a_strategy_of_two_jobs_with_the_same_settings_is_one_and_a_run_that_is_there_twice_counts_once(
    recorded: Path,
) -> None:
    job = merged(recorded, "erm", "both", "erm")
    assert runs(job) == [("erm", "east", 0), ("erm", "east", 1), ("hgp", "east", 0)]
    assert job.seeds == [0, 1]
    alone = {name: summarise(open_recorded(recorded / name))["strategies"] for name in ("erm", "both")}
    together = summarise(job)["strategies"]
    assert together["erm"]["accuracy"] == alone["erm"]["erm"]["accuracy"]
    assert together["hgp"]["accuracy"] == alone["both"]["hgp"]["accuracy"]


def test_a_strategy_with_other_settings_is_named_by_what_differs(recorded: Path) -> None:
    assert merged(recorded, "both", "strong").strategies == ["hgp (alpha=0.003)", "erm", "hgp (alpha=0.5)"]
    job = merged(recorded, "both", "fast")
    assert job.strategies == ["hgp (lr=0.1)", "erm (lr=0.1)", "hgp (lr=0.2)"], "a table says who had what"
    assert "client lr varied" in summarise(job)["protocol"]
    assert set(summarise(job)["arguments"]) == {"hgp (lr=0.1)", "hgp (lr=0.2)"}


def test_settings_to_select_among_stay_with_their_job(recorded: Path) -> None:
    job = merged(recorded, "varied", "both")
    assert job.strategies == [f"erm of {recorded / 'varied'}", "hgp", f"erm of {recorded / 'both'}"]
    assert [(run.strategy, run.variant) for run in job.runs][-1] == (f"erm of {recorded / 'both'}", 3)
    found = summarise(job)["strategies"]
    alone = summarise(open_recorded(recorded / "varied"))["strategies"]["erm"]
    assert found[job.strategies[0]]["selected_settings"] == alone["selected_settings"]
    assert found["hgp"]["selected_settings"] == {"east": ["lr=0.1"]}
    assert "selection among 2 (erm), 1 (hgp), 1 (erm) settings by" in summarise(job)["protocol"]


def test_targets_and_seeds_that_only_one_job_has_are_not_made_up(recorded: Path) -> None:
    summary = summarise(merged(recorded, "erm", "west"))["strategies"]["erm"]
    assert summary["accuracy"]["west"]["trials"] == 1
    assert summary["average"]["mean"] is None, "of seed 0 there is no run on west"
    assert summary["incomplete"] == {"west": "no run of seed 0"}
    assert summarise(merged(recorded, "erm", "both"))["strategies"]["hgp"]["incomplete"] == {"east": "no run of seed 1"}


def test_jobs_of_other_protocols_are_refused_by_key(recorded: Path) -> None:
    with pytest.raises(UsageError) as refused:
        merged(recorded, "erm", "both", "other")
    one, other = recorded / "erm", recorded / "other"
    assert str(refused.value).splitlines()[1:] == [
        f"  dataset.options.holdout: 0.25 in {one}, 0.5 in {other}",
        f"  settings.rounds: 2 in {one}, 3 in {other}",
    ]


def test_several_jobs_are_reported_in_a_directory_of_their_own(
    recorded: Path, reported: Callable[..., Outcome]
) -> None:
    before = {file: file.read_bytes() for file in recorded.rglob("*") if file.is_file()}
    outcome = reported(recorded / "both", recorded / "west", recorded / "strong")
    assert outcome.status == 0, outcome.err
    found = json.loads((recorded / "both+west+strong/summary.json").read_text())
    assert list(found["strategies"]) == ["hgp (alpha=0.003)", "erm", "hgp (alpha=0.5)"]
    page = (recorded / "both+west+strong/report.html").read_text()
    assert page.count("--quiet --out") == 3, "every job's command"
    assert before.items() < {file: file.read_bytes() for file in recorded.rglob("*") if file.is_file()}.items()
    assert reported(recorded / "both", recorded / "other").status == 2


def test_differences_are_to_erm_wherever_it_stands(recorded: Path) -> None:
    assert summarise(merged(recorded, "fast", "both"))["comparison"]["baseline"] == "erm (lr=0.1)"


def test_jobs_whose_directories_have_one_name_are_reported_in_neither(tmp_path: Path) -> None:
    one = record_job(tmp_path / "one/job", {("erm", "west", 0): (0.1, 0.5)})
    other = record_job(tmp_path / "other/job", {("hgp", "west", 0): (0.1, 0.5)})
    assert merge_jobs([one, other]).path == tmp_path / "one/job+job"


def test_trials_of_a_random_sweep_are_put_together_whatever_they_drew(tmp_path: Path) -> None:
    def swept(name: str, seed: int, high: float = 1.0) -> Job:
        record = {**record_job(tmp_path / name, {("erm", "west", seed): (0.1, 0.5)}).record}
        drawn = variant_of("erm", 1, {"lr": 0.1 + seed}, {}, seed=seed)
        space = {"low": 0.0, "high": high, "source": "--range", "base": 0.0, "choices": []}
        record["variants"] = [variant_of("erm", 0, {}, {}), drawn]
        record["search"] = {"kind": "random", "draws": 2, "spaces": {"erm": {"lr": space}}}
        return make_job(tmp_path / name, record, inner=False)

    one, other = swept("one", 0), swept("other", 1)
    job = merge_jobs([one, other])
    assert [(run.strategy, run.config.seed, job.variants[run.variant]) for run in job.runs] == [
        ("erm", 0, {}), ("erm", 1, {}), ("erm", 0, {"lr": 0.1}), ("erm", 1, {"lr": 1.1}),
    ]  # fmt: skip
    assert [run.config.lr for run in job.runs] == [0.1, 0.1, 0.1, 1.1]
    assert job.settings_each == "2"
    assert len(merge_jobs([one, swept("wider", 1, high=2.0)]).strategies) == 2


def test_page_shows_what_was_selected_on_every_target(tmp_path: Path) -> None:
    one = record_job(tmp_path / "one", {("erm", "west", 0): (0.1, 0.5)})
    other = record_job(tmp_path / "other", {("hgp", target, 0): (0.1, 0.5) for target in ("west", "east")})
    job = merge_jobs([one, other])
    page = render_page(job, summarise(job), [], {})
    section = page[page.index("What was selected") :]
    assert '<th scope="col">west</th><th scope="col">east</th>' in section


def test_two_jobs_on_other_data_are_refused_beside_one_whose_data_is_unknown(tmp_path: Path) -> None:
    jobs = [
        record_job(tmp_path / name, {("erm", "west", 0): (0.1, 0.5)}, digest=digest)
        for name, digest in (("deployed", ""), ("one", "a"), ("other", "b"))
    ]
    with pytest.raises(UsageError, match=r"dataset.digest: 'a' in .*one, 'b' in .*other"):
        merge_jobs(jobs)
    assert merge_jobs(jobs[:2]).data["digest"] == "a"


def test_a_form_of_the_table_is_all_that_is_printed(tmp_path: Path, reported: Callable[..., Outcome]) -> None:
    record_job(tmp_path / "job", {("erm", "west", 0): (0.1, 0.5)}, rounds=3)
    outcome = reported(tmp_path / "job", "--format", "csv")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("dataset,protocol,")
    assert "1 of 1 runs are not finished" in outcome.err


# -- The states of runs ------------------------------------------------------------------------------------------------


def test_every_run_is_listed_with_its_state(recorded: Path, reported: Callable[..., Outcome]) -> None:
    (first, second) = list_runs(open_recorded(recorded / "erm"))
    assert (first["state"], first["round"], first["rounds"], first["seed"]) == ("complete", 2, 2, 0)
    last = open_recorded(recorded / "erm").runs[1].directory.rows()[-1]
    assert second["accuracy"].endswith(f"east {100 * last['accuracy']:.1f} %")
    outcome = reported("--list-runs", recorded / "erm", recorded / "varied")
    assert f"{recorded / 'erm'}: 2 complete" in outcome.out
    assert "| erm      | lr=0.3   | east   | 0    | complete |" in outcome.out
    refused = reported("--list-runs", recorded / "erm", "--format", "csv")
    assert (refused.status, "leave out --format csv" in refused.err) == (2, True)
    assert set(json.loads(reported("--list-runs", "--json", recorded / "erm").out)) == {str(recorded / "erm")}


def test_runs_that_are_not_complete_are_told_apart(command: Callable[..., Outcome]) -> None:
    path = Path("job")
    assert command(*FREE, "--strategy", "erm,hgp", "--trials", "2", "--out", "job").status == 0
    _, other, hgp, last = (run.directory for run in open_recorded(path).runs)
    (last.path / "rounds.jsonl").unlink()
    for file in sorted(last.path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    last.path.rmdir()
    checkpoint = hgp.load_checkpoint()
    assert checkpoint is not None
    checkpoint.server_round = 1
    hgp.save_checkpoint(checkpoint)
    RunDirectory(other.path).save_checkpoint(checkpoint)
    other.record_failure("round 2: 0 of 3 clients answered")

    def states() -> list[tuple[str, int]]:
        return [(run["state"], run["round"]) for run in list_runs(open_recorded(path))]

    assert states() == [("complete", 2), ("failed", 1), ("interrupted", 1), ("not begun", 0)]
    assert list_runs(open_recorded(path))[1]["reason"] == "round 2: 0 of 3 clients answered"
    with job_directory(path, open_recorded(path).record, resume=True):
        assert states() == [("complete", 2), ("failed", 1), ("running", 1), ("not begun", 0)]
