"""A job that grows: its runs are those of a job that had all of it from the beginning, and nothing recorded changes."""

import hashlib
import importlib.util
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import ASSASSIN
from PIL import Image

import fedhess
from fedhess import simulate
from fedhess.base.errors import FederationError, UsageError
from fedhess.cli.options import read_options
from fedhess.domains import open_benchmark
from fedhess.federation.engines.choice import Engine
from fedhess.jobs.directory import hold, is_held
from fedhess.jobs.growing import open_again
from fedhess.jobs.job import Job, make_job
from fedhess.jobs.progress import Progress
from fedhess.jobs.reopening import open_recorded
from fedhess.results import results as results_module
from fedhess.results.results import Results
from tests.conftest import Outcome, Start, run_apart

BASE = ["--domains", "Toy", "--domains-args", "holdout=0.25,free=true", "--local-steps", "1", "--batch-size", "8"]
BASE += ["--lr", "0.1", "--evaluate-every", "1", "--l2", "0", "--server-optimizer", "Adam", "--server-lr", "0.01"]
FIRST = [*BASE, "--strategy", "hgp", "--strategy-args", "alpha=0.5", "--target", "east", "--trials", "1"]
FIRST += ["--rounds", "2"]
WHOLE = [*BASE, "--strategy", "hgp,erm", "--strategy-args", "hgp.alpha=0.5", "--target", "east,west", "--trials", "2"]
WHOLE += ["--rounds", "3"]
MEASURED = ("seconds", "bytes_down", "sent")  # of the process: time, and models sent again after a restart

Command = Callable[..., Outcome]
Key = tuple[str, str, str, int]


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "write", lambda self: [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job that grows; read only."""
    path = tmp_path_factory.mktemp("first") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "write", lambda self: [])
        run_apart(simulate, *FIRST, "--out", path)
    return path


@pytest.fixture
def first(trained: Path, command: Command) -> None:
    shutil.copytree(trained, "job")


def done(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.err


def results(path: str) -> dict[Key, tuple[list[dict[str, Any]], dict[str, bytes]]]:
    """Return the rows and the bytes of every file of weights, by what a run is."""
    job = open_recorded(Path(path))
    found: dict[Key, tuple[list[dict[str, Any]], dict[str, bytes]]] = {}
    for run in job.runs:
        settings = json.dumps(job.variants[run.variant]) if job.variants else ""
        rows = [{key: row[key] for key in row if key not in MEASURED} for row in run.directory.rows()]
        weights = {file.name: file.read_bytes() for file in sorted(run.directory.path.rglob("*.safetensors"))}
        assert rows
        assert weights
        found[run.strategy, settings, run.scenario.name, run.config.seed] = rows, weights
    return found


def digests(path: str) -> dict[str, str]:
    files = [file for file in Path(path).rglob("*") if file.is_file() and file.parent != Path(path)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.usefixtures("first")
def test_a_job_grows_also_while_it_runs_to_the_bytes_of_one_that_had_it_all_from_the_beginning(
    command: Command, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (["--strategy", "erm"], ["--target", "west"]):
        before = digests("job")
        done(command("--out", "job", "--add", *options))
        assert digests("job").items() > before.items(), "nothing recorded changed, and there is more"
    rows: dict[Path, bytes] = {}
    adding: list[subprocess.Popen[str]] = []

    def add_more(results: Results) -> list[Path]:
        rows.update({file: file.read_bytes() for file in Path("job").rglob("rounds.jsonl")})
        adding.append(start(["--out", "job", "--add", "--rounds", "3"]))
        assert adding[0].stdout is not None
        waits = next(line for line in adding[0].stdout if line.startswith("another process"))
        assert (
            waits == "another process runs the job in job; waiting for its end to go on from there (Ctrl-C gives up)\n"
        )
        assert open_recorded(results.path).record["settings"]["rounds"] == 2
        return []

    monkeypatch.setattr(Results, "write", add_more)
    done(command("--out", "job", "--add", "--trials", "2"))
    assert len(rows) == 8
    assert adding[0].wait() == 0
    monkeypatch.setattr(Results, "write", lambda self: [])
    for file, recorded in rows.items():
        assert file.read_bytes().startswith(recorded)
        assert file.read_bytes() != recorded
    done(command(*WHOLE, "--out", "whole"))
    assert results("job") == results("whole")
    assert sorted(str(file.parent) for file in rows) == [
        *("job/east/0", "job/east/1", "job/erm/east/0", "job/erm/east/1"),
        *("job/erm/west/0", "job/erm/west/1", "job/west/0", "job/west/1"),
    ]
    assert set(fedhess.open("job").summary["strategies"]) == {"hgp", "erm"}


@pytest.mark.usefixtures("first")
def test_variants_are_added_beside_the_setting_that_is_there(command: Command) -> None:
    before = digests("job")
    fedhess.run(out="job", add=True, variants=[{"lr": 0.2}, {"alpha": 1.0}], strategy="erm")
    assert digests("job").items() > before.items()
    assert open_recorded(Path("job")).variants == [{"hgp.alpha": 0.5, "lr": 0.1}, {"lr": 0.2}, {"alpha": 1.0}]
    done(command("--out", "job", "--add", "--variants", "lr=0.3; lr=0.2"))
    assert len(open_recorded(Path("job")).variants) == 4, "one of them was there"
    variants = "hgp.alpha=0.5,lr=0.1; lr=0.2; alpha=1.0; lr=0.3"
    whole = [*FIRST, "--strategy", "hgp,erm", "--strategy-args", "hgp.alpha=0.5", "--variants", variants]
    done(command(*whole, "--out", "whole"))
    found, expected = results("job"), results("whole")
    assert len(found) == 7, "of erm the third setting is the first"
    assert {(key[0], json.dumps(json.loads(key[1]), sort_keys=True)): of for key, of in found.items()} == {
        (key[0], json.dumps(json.loads(key[1]), sort_keys=True)): of for key, of in expected.items()
    }


def test_an_added_setting_of_another_scale_has_that_scales_coefficients(command: Command) -> None:
    brief = [*BASE, "--strategy", "hgp", "--target", "east", "--trials", "1", "--rounds", "1"]
    done(command(*brief, "--variants", "scale=relative; scale=absolute", "--out", "whole"))
    done(command(*brief, "--out", "job"))
    done(command("--out", "job", "--add", "--variants", "scale=absolute"))
    assert results("job") == results("whole")
    again = ["--config", "job/config.json", "--variants", "scale=relative; scale=absolute"]
    done(command(*again, "--out", "again"))
    assert results("again") == results("whole")


def test_a_setting_that_follows_the_scale_stays_open_whichever_variant_is_first(command: Command) -> None:
    brief = [*BASE, "--strategy", "hgp", "--target", "east", "--trials", "1", "--rounds", "1"]
    done(command(*brief, "--variants", "scale=absolute; lr=0.2", "--out", "job"))
    before = Path("job/config.json").read_bytes()
    done(command("--out", "job", "--resume"))
    assert Path("job/config.json").read_bytes() == before
    done(command("--out", "job", "--add", "--variants", "lr=0.3"))
    done(command(*brief, "--variants", "scale=absolute; lr=0.2; lr=0.3", "--out", "whole"))
    assert results("job") == results("whole")
    done(command("--config", "job/config.json", "--out", "again"))
    assert results("again") == results("whole")


def test_a_variant_that_leaves_open_what_all_others_set_is_refused(command: Command) -> None:
    done(command(*FIRST, "--variants", "alpha=1; hgp.alpha=2", "--out", "job"))
    outcome = command("--out", "job", "--add", "--variants", "lr=0.3")
    assert outcome.status == 2
    assert "'lr=0.3' leaves hgp.alpha open, of which each of the job's settings has its own value" in outcome.err
    done(command("--out", "job", "--add", "--variants", "lr=0.3,alpha=3"))


@pytest.mark.usefixtures("first")
def test_an_addition_that_is_killed_is_resumed_without_any_option(command: Command) -> None:
    job = Path("job").resolve()
    more = ["--strategy", "erm", "--selection", "lodo"]
    assert ASSASSIN.attempt(lambda: command("--out", job, "--add", *more), below=job, strike=40)
    done(command("--out", "job", "--resume"))
    whole = [*FIRST, *more, "--strategy", "hgp,erm", "--strategy-args", "hgp.alpha=0.5"]
    done(command(*whole, "--out", "whole"))
    assert open_recorded(job).selection == "lodo"
    assert results("job") == results("whole")
    config = Path("job/config.json").read_bytes()
    done(command("--out", "job", "--add"))
    assert Path("job/config.json").read_bytes() == config, "nothing is added and nothing is left to run"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.usefixtures("first")
def test_a_job_begun_in_turn_goes_on_on_ray(command: Command) -> None:
    planned = command("--out", "job", "--resume", "--engine", "ray", "--show-partition")
    assert planned.status == 0, planned.err
    refused = command("--out", "job", "--resume", "--device", "cpu", "--show-partition")
    assert "settings.device: 'auto' there, 'cpu' now" in refused.err


@pytest.mark.usefixtures("first")
def test_each_addition_is_recorded_with_what_it_ran_in(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = json.loads(Path("job/config.json").read_text())
    now = begun["environment"] | {"git_revision": "another"}
    monkeypatch.setattr("fedhess.jobs.growing.describe_environment", lambda own_code: now)
    outcome = command("--out", "job", "--add", "--strategy", "erm", "--rounds", "3")
    assert "added to the job in job: strategies erm; rounds 3" in outcome.out
    config = json.loads(Path("job/config.json").read_text())
    assert (config["environment"], config["command"]) == (begun["environment"], begun["command"])
    (entry,) = config["additions"]
    assert entry["command"][1:] == ["--out", "job", "--add", "--strategy", "erm", "--rounds", "3"]
    assert entry["from_round"] == {"east/0": 2, "erm/east/0": 0}
    assert entry["environment"]["git_revision"] == "another"
    again = command("--out", "job", "--resume")
    assert "bits may differ: git_revision: 'another' there" in " ".join(again.out.replace("|", " ").split())


def points() -> dict[str, Any]:
    return {name: (np.eye(8) + number, np.arange(8) % 2) for number, name in enumerate("abc")}


def test_own_data_may_be_named_again(command: Command) -> None:
    name = f"{__name__}:points"
    shared = ["--domains", name, "--model", "mlp", "--target", "a", "--trials", "1", "--out", "job"]
    done(command(*shared, "--strategy", "erm", "--rounds", "1"))
    done(command(*shared, "--strategy", "erm", "--rounds", "2", "--add"))
    other = command("--domains", f"{__name__}:others", "--out", "job", "--add")
    assert f"the job in job is on {name}, got {__name__}:others" in " ".join(other.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "--lr 0.2 --model lite0 --strategy-args alpha=1": (
            "settings.lr: 0.1 there, 0.2 now\n  settings.model: 'mlp' there, 'lite0' now\n"
            "  strategies.hgp.alpha: 0.5 there, 1 now"
        ),
        "--rounds 1": "settings.rounds: 2 there, 1 now",
        "--domains-args holdout=0.5": "dataset.options.holdout: 0.25 there, 0.5 now",
        "--domains IconPACS": "--domains: the job in job is on Toy, got IconPACS; leave the option out",
        "--data-dir here": "--data-dir: Toy reads no folder",
        "--strategy nothing": "unknown strategy 'nothing'",
        "--target north+south+west": "expected at least two source domains",
        "--strategy erm --strategy-args alpha=1": "strategy 'erm' has no argument 'alpha'",
        "--variants lr": "expected key=value",
    }.items(),
)
@pytest.mark.usefixtures("first")
def test_what_differs_is_refused_by_key_and_nothing_changes(options: str, message: str, command: Command) -> None:
    before = {file: file.read_bytes() for file in Path("job").rglob("*") if file.is_file()}
    outcome = command("--out", "job", "--add", *options.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert {file: file.read_bytes() for file in Path("job").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--lr-schedule", "cosine"], "lr_schedule;"),
        (["--average", "swad", "--evaluate-every", "3"], "average (swad"),
        (["--strategy", "ga+sagm", "--strategy-args", "ga_s=0.1"], "strategy ga+sagm;"),
    ],
)
def test_rounds_that_know_how_many_there_are_take_no_more(options: list[str], named: str, command: Command) -> None:
    done(command(*FIRST, *options, "--out", "job"))
    outcome = command("--out", "job", "--add", "--rounds", "4")
    assert outcome.status == 2
    assert "--rounds 4: what the rounds of the job in job did depends on how many there are, 2" in outcome.err
    assert f"through {named}" in outcome.err


def test_the_former_last_round_stays_evaluated_and_the_model_is_the_same(command: Command) -> None:
    seldom = [*FIRST, "--rounds", "3", "--evaluate-every", "2"]
    done(command(*seldom, "--out", "job"))
    done(command("--out", "job", "--add", "--rounds", "4"))
    done(command(*seldom, "--rounds", "4", "--out", "whole"))
    (grown,), (whole,) = open_recorded(Path("job")).runs, open_recorded(Path("whole")).runs
    assert [{row["round"] for row in run.directory.rows()} for run in (grown, whole)] == [{0, 2, 3, 4}, {0, 2, 4}]
    last = "checkpoint/round-000004.safetensors"
    assert (grown.directory.path / last).read_bytes() == (whole.directory.path / last).read_bytes()


@pytest.mark.usefixtures("first")
def test_a_mistake_in_what_is_added_to_a_running_job_shows_at_once(command: Command) -> None:
    lock = hold(Path("job"))
    outcome = command("--out", "job", "--add", "--strategy", "no-such")
    assert outcome.status == 2
    assert "unknown strategy 'no-such'" in outcome.err
    lock.release()
    assert command("--out", "job", "--add", "--strategy", "no-such").status == 2
    assert not is_held(Path("job")), "a refused plan releases it"


@pytest.mark.usefixtures("first")
def test_nothing_made_of_other_rows_stays_in_a_job(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ["report.html", "table.tex", "selection.md", "figures/rounds-column.pdf", "figures/confusion_east.png"]
    kept, whole = ["notes.md", "figures/mine.png"], list[Path]()

    def make() -> None:
        Path("job/figures").mkdir(exist_ok=True)
        for name in made:
            Path("job", name).touch()

    def there() -> list[str]:
        return [name for name in [*made, *kept] if Path("job", name).exists()]

    def run(job: Job, progress: Progress, engine: Engine) -> dict[int, str]:
        assert there() == kept
        make()  # somebody looks while it runs
        raise FederationError("too few clients")

    make()
    for name in kept:
        Path("job", name).touch()
    with monkeypatch.context() as patch:
        patch.setattr(results_module, "run_job", run)
        assert command("--out", "job", "--add", "--strategy", "erm").status == 1
        assert there() == kept
    make()
    monkeypatch.setattr(Results, "report", lambda self: whole.append(self.path) or [])
    done(command("--out", "job", "--resume"))
    assert there() == kept
    assert whole == [Path("job")], "a page was there, so one is written again"


def test_there_must_be_a_job_that_can_grow(command: Command) -> None:
    assert "--add: expected --out with the directory of the job to add to, got none" in command("--add").err
    Path("empty").mkdir()
    assert "--add: there is no empty/config.json" in command("--add", "--out", "empty").err
    assert list(Path("empty").iterdir()) == [], "nor is it locked"


@pytest.mark.usefixtures("first")
def test_a_job_of_an_earlier_version_grows(command: Command) -> None:
    file = Path("job/config.json")
    config = json.loads(file.read_text())
    del config["variants"], config["selection"], config["settings"]["lr_schedule"], config["settings"]["average"]
    config["settings"]["lr_drop_after"] = 0.0
    file.write_text(json.dumps(config))
    done(command("--out", "job", "--add", "--strategy", "erm"))
    assert [run.strategy for run in open_recorded(Path("job")).runs] == ["hgp", "erm"]


# -- What a command leaves out -----------------------------------------------------------------------------------------


def planned(record: dict[str, Any]) -> Job:
    return make_job(Path("job"), record, inner=False)


def test_data_made_at_random_stays_what_it_is_when_a_lower_seed_is_added() -> None:
    settings = {"model": "mlp", "domains": "Toy"}
    record = {"dataset": {"counts": {"a": {}, "b": {}, "c": {}}, "options": {"seed": 5}}, "strategies": {"erm": {}}}
    record |= {"targets": ["c"], "seeds": [5, 6], "settings": settings}
    before = {run.config.seed: run.config.domains_options for run in planned(record).runs}
    after = {run.config.seed: run.config.domains_options for run in planned(record | {"seeds": [5, 6, 2]}).runs}
    assert before == {5: {"seed": 5}, 6: {"seed": 6}}
    assert after == before | {2: {"seed": 2}}


def test_a_stand_in_is_opened_again_without_looking_for_what_it_stands_in_for() -> None:
    was = {"name": "IconPACS", "stand_in_for": "PACS", "title": "IconPACS (stand-in for PACS)", "options": {}}
    for given in ({}, {"domains": "PACS"}, {"domains": "iconpacs"}):
        options, _ = read_options(given)
        assert open_again({"dataset": was}, options, given, print).title == was["title"]
    options, _ = read_options({"require_real": True})
    with pytest.raises(UsageError, match="--require-real: the job in None is on IconPACS"):
        open_again({"dataset": was}, options, {}, print)


def test_bad_images_are_left_out_of_a_whole_job_or_not_at_all(tmp_path: Path) -> None:
    for domain, name in itertools.product("abc", "xy"):
        folder = tmp_path / domain / name
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "1.png")
    was = open_benchmark(f"folder:{tmp_path}").identity()
    options, _ = read_options({"skip_bad_images": True})
    now = open_again({"dataset": was}, options, {}, print)
    assert (was["options"]["skip_bad_images"], now.options["skip_bad_images"]) == (False, True), "which is refused"
