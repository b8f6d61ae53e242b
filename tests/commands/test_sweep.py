"""``fedhess sweep`` from start to end: draws, grids and Optuna, interrupted, grown, reported."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fedhess
from fedhess import report, simulate, sweep
from fedhess.federation.engines.choice import IN_PROCESS
from fedhess.jobs import running
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_recorded
from fedhess.jobs.search import recorded_spaces
from fedhess.results import studies
from fedhess.results.selection import cells_of, choose, read_rows
from tests.conftest import Outcome, run_apart

FREE = ["--domains", "Toy", "--domains-args", "holdout=0.25,free=true", "--rounds", "2", "--local-steps", "1"]
FREE += ["--batch-size", "8", "--server-optimizer", "SGD", "--server-lr", "1", "--evaluate-every", "1", "--l2", "0"]
BRIEF = [*FREE, "--lr", "0.1", "--target", "east", "--trials", "1", "--quiet"]
OPTUNA = [*FREE, "--strategy", "hgp", "--target", "east,west", "--trials", "1", "--quiet"]
OPTUNA += ["--search", "optuna", "--range", "lr=0.01:0.5:log", "--lr", "0.1", "--draws", "4"]

Command = Callable[..., Outcome]


@pytest.fixture
def command(command: Command) -> Command:
    """Run a command in this process, a sweep unless another is named."""
    return partial(command, of=sweep)


def rows(job: str) -> dict[str, list[dict[str, Any]]]:
    """Return what every run recorded, but for the time that it took."""
    files = sorted(Path(job).rglob("rounds.jsonl"))
    found = {str(file.relative_to(job)): [json.loads(line) for line in file.open()] for file in files}
    return {name: [{k: v for k, v in row.items() if k != "seconds"} for row in each] for name, each in found.items()}


def recorded(job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job) / "config.json").read_text())
    return found


# -- Draws and grids ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_on_real_images_are_run_selected_and_shown(command: Command) -> None:
    brief = ["--domains", "IconPACS", "--strategy", "erm", "--target", "sketch", "--trials", "1", "--rounds", "2"]
    outcome = command(*brief, "--draws", "3", "--evaluate-every", "1", "--out", "job")
    assert outcome.status == 0, outcome.err
    assert "3, 3 settings among them: 3 runs, 6 rounds of training" in outcome.out
    assert "selection among 3 settings drawn at random by source validation" in outcome.out
    result = json.loads(Path("job/summary.json").read_text())["strategies"]["erm"]
    job = open_recorded(Path("job"))
    (cell,) = cells_of(read_rows(job), "erm")
    choice, _ = cell.choose("source")
    assert choice is not None
    (chosen,) = result["choices"]
    assert (chosen["target"], chosen["seed"], chosen["number"]) == ("sketch", 0, choice.candidate)
    assert chosen["settings"] == job.variants[choice.candidate]
    assert result["incomplete"] == {}
    assert f"| erm      | sketch | 0    | {choice.candidate}      |" in outcome.out
    by_oracle = command("job", "--selection", "source,oracle", of=report)
    assert by_oracle.status == 0, by_oracle.err
    assert "oracle (looks at the target)" in by_oracle.out


def test_choices_at_the_edge_of_a_grid_are_named(command: Command) -> None:
    grid = ["--grid", "erm.lr=1e-5,1e-4,0.2,hgp.lr=1e-5,0.2"]  # the toy learns by the last alone
    brief = [*FREE, "--strategy", "erm,hgp", "--target", "east", "--trials", "1", "--rounds", "6", "--quiet"]
    outcome = command(*brief, *grid, "--out", "job")
    assert outcome.status == 0, outcome.err
    assert "selection among 3 (erm), 2 (hgp) settings of a grid" in outcome.out
    assert "- erm, lr: 1 of 1 choices lie at the high end of 1e-05 or 0.0001 or 0.2; widen it" in outcome.out
    assert "- hgp, lr" not in outcome.out, "of two values each is at an edge"
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("| erm ") and "lr=0.2" in line]
    assert [cell.strip() for cell in line.split("|")] == ["", "erm", "east", "0", "2", "lr=0.2", "lr: high", ""]


def test_a_setting_at_which_a_strategy_raises_leaves_the_others_and_is_marked(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fragile.py").write_text(
        "from fedhess.alignment import DomainStrategy\n"
        "class Fragile(DomainStrategy):\n"
        "    def __init__(self, *, alpha: float = 0.5) -> None:\n"
        "        self.alpha = alpha\n"
        "    def reference(self, ask):\n"
        "        if self.alpha > 1:\n"
        "            raise ValueError('too much')\n"
        "        return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    outcome = command(*BRIEF, "--strategy", "fragile:Fragile,erm", "--grid", "alpha=2,0.5,1e300", "--out", "job")
    assert outcome.status == 0, outcome.err
    said = " ".join(outcome.err.replace("|", " ").split())
    assert "(alpha=2) stopped; the other settings go on." in said
    assert "too much" in said
    assert "- fragile:Fragile, east: of 3 runs 2 failed, 0 left to run" in outcome.out
    lines = outcome.out.splitlines()
    first = {name: next(line for line in lines if line.startswith(f"| {name}")) for name in ("fragile", "erm")}
    assert " ! |" in first["fragile"]
    assert "!" not in first["erm"]
    (chosen,) = json.loads(Path("job/summary.json").read_text())["strategies"]["fragile:Fragile"]["choices"]
    assert chosen["settings"] == {"alpha": 0.5}


@pytest.mark.parametrize("searched", [["--grid", "alpha=2,3"], ["--search", "optuna", "--range", "alpha=2:3"]])
def test_a_sweep_of_which_every_run_failed_ends_with_an_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, searched: list[str]
) -> None:
    (tmp_path / "broken.py").write_text(
        "from fedhess.alignment import DomainStrategy\n"
        "class Broken(DomainStrategy):\n"
        "    def __init__(self, *, alpha: float = 0.5) -> None:\n"
        "        self.alpha = alpha\n"
        "    def reference(self, ask):\n"
        "        raise ValueError('broken')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    searched = [*searched, "--draws", "2"] if "optuna" in searched else searched
    outcome = command(*BRIEF, "--strategy", "broken:Broken", *searched, "--out", "job")
    assert outcome.status == 1
    assert "2 of 2 runs failed:" in outcome.err
    assert not Path("job/summary.json").exists()


# -- Optuna ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep by Optuna; read only."""
    path = tmp_path_factory.mktemp("study") / "job"
    run_apart(sweep, *OPTUNA, "--out", path)
    return path


def test_a_study_goes_on_after_an_interruption_with_the_settings_that_it_would_have_had(
    command: Command, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study, "whole")
    run_to_end, calls = running.run_to_end, 0

    def interrupted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # of the two studies' second settings the second
            raise KeyboardInterrupt
        return run_to_end(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_to_end", interrupted)
        assert command(*OPTUNA, "--out", "parts").status != 0
    assert len(rows("parts")) == 3
    unfinished = command("parts", of=report)
    assert "- hgp, east: of 4 runs 0 failed, 2 left to run" in unfinished.out
    shutil.copytree("parts", "copy")
    merged = command("parts", "copy", "--format", "markdown", of=report)
    assert "- hgp, east: of 4 runs 0 failed, 2 left to run" in merged.out, "what nobody was asked for yet is left, too"
    continued = command("--resume", "--out", "parts", "--quiet")
    assert continued.status == 0, continued.err
    assert recorded("parts")["variants"] == recorded("whole")["variants"]
    assert rows("parts") == rows("whole")
    assert len(rows("whole")) == 4 * 2


def test_a_study_whose_recorded_range_has_an_end_that_is_no_value_goes_on(command: Command, study: Path) -> None:
    shutil.copytree(study, "job")
    config = recorded("job")
    config["search"]["spaces"]["hgp"]["alpha"]["low"] = -1.0  # earlier versions took it
    config["search"]["spaces"]["hgp"]["alpha"]["base"] = 0.0
    Path("job/config.json").write_text(json.dumps(config))
    continued = command("--resume", "--out", "job", "--quiet")
    assert continued.status == 0, continued.err


@pytest.mark.slow
def test_each_target_has_its_own_study_which_its_rows_alone_decide(command: Command, study: Path) -> None:
    alone = [*OPTUNA[: OPTUNA.index("--target")], "--target", "west", *OPTUNA[OPTUNA.index("--target") + 2 :]]
    assert command(*alone, "--out", "alone").status == 0
    own = [variant for variant in recorded(str(study))["variants"] if variant.get("targets") == ["west"]]
    assert own == [variant for variant in recorded("alone")["variants"] if "targets" in variant]
    assert len(own) == 3
    assert all(0.01 <= variant["settings"]["lr"] <= 0.5 for variant in own)


def test_a_suggestion_follows_from_source_validation_alone(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "job", ignore=shutil.ignore_patterns("checkpoint"))
    config = recorded(str(study))
    config["search"]["draws"] = 20
    (tmp_path / "job/config.json").write_text(json.dumps(config))
    job = open_recorded(tmp_path / "job")
    first = studies.suggest(job)
    assert [(each["number"], each["targets"]) for each in first] == [(4, ["east"]), (4, ["west"])]
    change(job.path, lambda row: row | {"accuracy": 0.0} if row["role"] == "target" else row)
    assert studies.suggest(job) == first, "the target's own rows are worth nothing to it"
    east = cells_of(read_rows(job), "hgp")[0]
    history = studies._history(job, east, job.record["variants"][0]["arguments"]["hgp"])
    assert [value for _, value in history] == [choose("source", [each], ()).accuracy for each in east.candidates]
    values = [settings["lr"] for settings, _ in history]
    assert values[0] == 0.1, "the defaults are part of it"
    # Of many settings, the sampler comes near those that were best.
    space = {"lr": recorded_spaces(job.record)["hgp"]["lr"]}
    spread = [0.01 * 50 ** (k / 19) for k in range(20)]
    for best in (0.012, 0.45):
        judged = [({"lr": lr}, -abs(math.log(lr / best))) for lr in spread]
        asked = [float(studies._ask(judged, space, seed=seed)["lr"]) for seed in range(10)]
        assert sum(abs(math.log(lr / best)) < 1.0 for lr in asked) >= 8


def test_every_setting_of_a_study_is_tracked(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(study, tmp_path / "job", ignore=shutil.ignore_patterns("checkpoint"))
    config = recorded(str(study))
    config["search"]["draws"] = 5
    (tmp_path / "job/config.json").write_text(json.dumps(config))
    tracked: list[tuple[str, ...]] = []
    monkeypatch.setattr(studies, "run_job", lambda job, progress, *, engine: tracked.append(job.trackers))
    job = replace(open_recorded(tmp_path / "job"), trackers=("tensorboard",))
    assert studies.run_studies(job, Progress(silent=True), engine=IN_PROCESS).trackers == ("tensorboard",)
    assert tracked == [("tensorboard",)] * 2


def change(job: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for file in job.rglob("rounds.jsonl"):
        lines = [changed(json.loads(line)) for line in file.open()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_optuna_that_is_not_installed_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = command(*OPTUNA, "--out", "job")
    assert outcome.status == 2
    assert "--search optuna: Optuna cannot be imported" in outcome.err
    assert "pip install 'fedhess[optuna]'" in outcome.err


# -- Jobs that grow, and are run again ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_takes_more_strategies_draws_and_trials(command: Command) -> None:
    brief = [*FREE, "--lr", "0.1", "--target", "east", "--quiet"]
    assert command(*brief, "--strategy", "hgp", "--draws", "2", "--trials", "1", "--out", "job").status == 0
    before = rows("job")
    grown = command("--add", "--out", "job", "--strategy", "erm", "--draws", "3", "--trials", "2", "--quiet")
    assert grown.status == 0, grown.err
    after = rows("job")
    assert {name: after[name] for name in before} == before
    assert command(*brief, "--strategy", "hgp,erm", "--draws", "3", "--trials", "2", "--out", "new").status == 0
    assert {Path("hgp", name) if not name.startswith("erm") else Path(name): each for name, each in after.items()} == {
        Path(name): each for name, each in rows("new").items()
    }
    again = recorded("job")
    assert command("--resume", "--out", "job", "--quiet").status == 0
    assert recorded("job") == again, "nothing is left to add"


@pytest.mark.parametrize("bare", [False, True])
def test_what_is_added_to_a_sweep_is_drawn_for_every_trial(command: Command, *, bare: bool) -> None:
    given = ["--strategy", "hgp", "--strategy-args", "alpha=0.5"]
    assert command(*BRIEF, *given, "--draws", "2", "--trials", "2", "--out", "job").status == 0
    if bare:  # as earlier versions have it
        config = recorded("job")
        config["search"]["fixed"] = [key.removeprefix("hgp.") for key in config["search"]["fixed"]]
        Path("job/config.json").write_text(json.dumps(config))
    grown = command("--add", "--out", "job", "--strategy", "hutchinson")
    assert grown.status == 0, grown.err
    assert "added to the job in job: strategies hutchinson; variants 3" in grown.out
    job = open_recorded(Path("job"))
    drawn = {(run.number, run.config.seed) for run in job.runs if run.strategy == "hutchinson"}
    assert drawn == {(0, 0), (0, 1), (1, 0), (1, 1)}
    spaces = recorded_spaces(job.record)
    assert ["alpha" in spaces[name] for name in ("hgp", "hutchinson")] == [False, True], "given to the first alone"


@pytest.mark.parametrize(
    ("searched", "named"),
    [
        (["--strategy", "irm"], "through the range of irm's anneal_steps; leave the option out"),
        (["--strategy", "erm", "--search", "optuna", "--range", "lr=0.1:1"], "through Optuna, whose settings follow"),
    ],
)
def test_a_sweep_whose_settings_know_the_rounds_takes_no_more(
    command: Command, searched: list[str], named: str
) -> None:
    assert command(*BRIEF, *searched, "--draws", "1", "--out", "job").status == 0
    outcome = command("--add", "--out", "job", "--rounds", "3")
    assert outcome.status == 2
    assert named in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume", "--draws", "3"), "--resume: the sweep in job has --draws 2, got 3; leave the option out"),
        (("--add", "--grid", "lr=1,2"), "--add: the sweep in job has --grid not given, got lr=1,2"),
        (("--add", "--range", "alpha=1:2"), "--range: what hgp draws from is recorded and stays; name the strategy"),
    ],
)
def test_what_was_searched_stays(
    command: Command, sweep_of_hgp: Path, arguments: tuple[str, ...], message: str
) -> None:
    shutil.copytree(sweep_of_hgp, "job")
    outcome = command(*arguments, "--out", "job")
    assert outcome.status == 2
    assert message in outcome.err


@pytest.fixture(scope="module")
def sweep_of_hgp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of one strategy; read only."""
    path = tmp_path_factory.mktemp("sweep") / "job"
    run_apart(sweep, *BRIEF, "--strategy", "hgp", "--draws", "2", "--out", path)
    return path


def test_a_sweep_is_told_how_it_gets_its_cross_validation(command: Command, sweep_of_hgp: Path) -> None:
    outcome = command(sweep_of_hgp, "--selection", "lodo", of=report)
    assert outcome.status == 2
    assert f"fedhess sweep --out {sweep_of_hgp} --resume --selection lodo" in outcome.err


def test_a_sweep_and_another_job_do_not_continue_each_other(command: Command, sweep_of_hgp: Path) -> None:
    shutil.copytree(sweep_of_hgp, "job")
    outcome = command("--resume", "--out", "job", of=simulate)
    assert outcome.status == 2
    assert "--resume: the job in job is a sweep; use fedhess sweep --resume" in outcome.err
    assert command(*BRIEF, "--strategy", "erm", "--out", "plain", of=simulate).status == 0
    outcome = command("--add", "--out", "plain")
    assert outcome.status == 2
    assert "--add: the job in plain is no sweep; use fedhess simulate --add" in outcome.err


def test_the_config_of_a_sweep_has_what_was_given_and_ranged(command: Command) -> None:
    given = ["--strategy", "hgp", "--strategy-args", "alpha=0.5", "--range", "alpha=0.1:1", "--draws", "2"]
    assert command(*BRIEF, *given, "--out", "job").status == 0
    assert command("--config", "job/config.json", "--out", "again", "--quiet").status == 0
    assert recorded("again")["variants"] == recorded("job")["variants"]
    assert recorded("again")["variants"][0]["arguments"]["hgp"]["alpha"] == 0.5


def test_the_config_of_a_grid_over_scales_has_the_coefficients_of_each(command: Command) -> None:
    assert command(*BRIEF, "--strategy", "hgp", "--grid", "scale=relative,absolute", "--out", "job").status == 0
    assert command("--config", "job/config.json", "--out", "again", "--quiet").status == 0
    assert recorded("again")["variants"] == recorded("job")["variants"]
    assert rows("again") == rows("job")


def test_the_config_of_a_sweep_runs_it_again(command: Command, sweep_of_hgp: Path) -> None:
    assert command("--config", sweep_of_hgp / "config.json", "--out", "again", "--quiet").status == 0
    assert recorded("again")["variants"] == recorded(str(sweep_of_hgp))["variants"]
    assert rows("again") == rows(str(sweep_of_hgp))
    outcome = command("--config", sweep_of_hgp / "config.json", "--out", "other", of=simulate)
    assert outcome.status == 2
    assert "it is the config.json of a sweep; run it again with fedhess sweep --config" in outcome.err


def test_ranges_are_shown_with_their_sources_and_nothing_runs(command: Command) -> None:
    outcome = command(*FREE, "--lr", "1", "--strategy", "erm,coral", "--show-ranges", "--out", "job")
    assert outcome.status == 0, outcome.err
    assert "| coral    | gamma   | 0.1:10:log         | DomainBed, hparams_registry.py |" in outcome.out
    assert "| erm      |         | the defaults alone |" in outcome.out.replace(
        "the defaults alone ", "the defaults alone "
    )
    assert not Path("job").exists()


@pytest.mark.slow
def test_python_searches_as_the_command_does(command: Command, sweep_of_hgp: Path) -> None:
    results = fedhess.search(
        domains="Toy", domains_args={"holdout": 0.25, "free": "true"}, rounds=2, local_steps=1, batch_size=8,
        server_optimizer="SGD", server_lr=1, evaluate_every=1, l2=0, lr=0.1, target="east", trials=1, strategy="hgp",
        draws=2, out="called",
    )  # fmt: skip
    assert rows("called") == rows(str(sweep_of_hgp))
    assert set(results.rows["variant"]) == {0, 1}
    grid = fedhess.search(out="grid", grid={"lr": [0.1, 0.2]}, **GRID)
    assert [variant["lr"] for variant in grid.job.variants] == [0.1, 0.2]


GRID: dict[str, Any] = {
    "domains": "Toy", "domains_args": {"holdout": 0.25}, "rounds": 1, "trials": 1, "strategy": ["erm"],
    "server_optimizer": "SGD", "server_lr": 1, "batch_size": 8,
}  # fmt: skip
