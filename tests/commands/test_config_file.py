"""``--config``: options from a file, or from the config.json of an earlier job."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhess import sweep
from fedhess.cli.config_file import options_of_job
from fedhess.jobs.reopening import open_recorded
from tests.conftest import TOY, Outcome

BRIEF = ["--domains", "Toy", "--domains-args", "holdout=0.25", "--rounds", "2", "--batch-size", "8", "--trials", "1"]
Command = Callable[..., Outcome]


def rows(job: str) -> list[dict[str, object]]:
    found = [json.loads(line) for file in sorted(Path(job).rglob("rounds.jsonl")) for line in file.open()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_options_of_a_file_are_those_of_the_command_line_and_these_go_over_it(command: Command) -> None:
    Path("job.toml").write_text(
        'domains = "Toy"\ndomains-args = "holdout=0.25"\nrounds = 3\nlocal-steps = 1\nbatch-size = 8\nlr = 0.1\n'
        'evaluate-every = 1\nl2 = 0\ntrials = 1\nserver-optimizer = "SGD"\nserver-lr = 1\nstrategy = "erm"\n'
    )
    assert command("--config", "job.toml", "--strategy", "hgp", "--out", "file").status == 0
    assert command(*TOY, "--strategy", "hgp", "--out", "line").status == 0
    assert rows("file") == rows("line")


def test_a_config_json_runs_its_job_again(command: Command) -> None:
    args = ["--strategy", "erm,hgp", "--strategy-args", "hgp.alpha=0.5", "--seed", 3]
    assert command(*TOY, *args, "--out", "first").status == 0
    again = command("--config", "first/config.json", "--out", "second")
    assert again.status == 0, again.err
    assert rows("first") == rows("second")
    first, second = (json.loads(Path(job, "config.json").read_text()) for job in ("first", "second"))
    assert first["command"][1:] == [*map(str, [*TOY, *args]), "--out", "first"]
    assert {key: first[key] for key in ("strategies", "settings", "seeds")} == {
        key: second[key] for key in ("strategies", "settings", "seeds")
    }


@pytest.mark.parametrize(
    ("args", "over", "same"),
    [
        (["--strategy", "erm", "--local-epochs", "1"], [], ["--strategy", "erm", "--local-epochs", "1"]),
        (["--strategy", "fedadam"], [], ["--strategy", "fedadam"]),
        (
            ["--strategy", "erm,hgp", "--average", "swa", "--strategy-args", "hgp.alpha=0.5"],
            ["--strategy", "erm", "--local-epochs", "1", "--average", "ema"],
            ["--strategy", "erm", "--local-epochs", "1", "--average", "ema"],
        ),
        (
            ["--strategy", "hgp", "--strategy-args", "alpha=0.5", "--variants", "lr=0.1; alpha=1"],
            [],
            ["--strategy", "hgp", "--strategy-args", "alpha=0.5", "--variants", "lr=0.1; alpha=1"],
        ),
    ],
)
def test_what_the_command_line_has_goes_over_a_config_json(
    command: Command, args: list[str], over: list[str], same: list[str]
) -> None:
    assert command(*BRIEF, *args, "--out", "first").status == 0
    again = command("--config", "first/config.json", *over, "--out", "again")
    assert again.status == 0, again.err
    assert command(*BRIEF, *same, "--out", "line").status == 0
    assert rows("again") == rows("line")


def test_a_config_json_with_a_setting_of_nothing_runs_its_job_again(command: Command) -> None:
    assert command(*TOY, "--strategy", "erm", "--out", "job").status == 0
    assert command("--out", "job", "--add", "--variants", "server_optimizer_args.momentum=0.9").status == 0
    assert json.loads(Path("job/config.json").read_text())["variants"][0]["settings"] == {}
    again = command("--config", "job/config.json", "--out", "again")
    assert again.status == 0, again.err
    assert sorted(map(str, rows("again"))) == sorted(map(str, rows("job")))
    again = command("--config", "job/config.json", "--lr", "0.5", "--out", "faster")
    assert again.status == 0, again.err
    assert {run.config.lr for run in open_recorded(Path("faster")).runs} == {0.5}
    outcome = command("--config", "job/config.json", "--out", "other", of=sweep)
    assert outcome.status == 2
    assert "it is the config.json of no sweep; run it again with fedhess simulate --config" in outcome.err


def test_other_data_has_its_own_options_and_targets(command: Command) -> None:
    assert command(*TOY, "--strategy", "erm", "--target", "east", "--out", "job").status == 0
    for domains, targets in (("toy", ["east"]), ("tests.jobs.test_growing:points", ["a", "b", "c"])):
        again = command("--config", "job/config.json", "--domains", domains, "--out", domains)
        assert again.status == 0, again.err
        assert open_recorded(Path(domains)).record["targets"] == targets


def test_a_config_json_keeps_the_seed_that_was_given_to_data() -> None:
    recorded: dict[str, Any] = {
        "dataset": {"name": "Toy", "options": {"seed": 7}},
        "strategies": {"erm": {}},
        "targets": ["east"],
    }
    recorded |= {"settings": {}, "seeds": [5, 6, 4]}  # the first trial's data has it
    assert options_of_job(recorded, [])["domains_args"] == "seed=6"
    recorded["dataset"]["options"]["seed"] = 5
    assert options_of_job(recorded, [])["domains_args"] == "", "it is the trial's own"


def test_a_config_json_of_before_schedules_means_what_it_did() -> None:
    recorded = {"dataset": {"name": "Toy", "options": {}}, "strategies": {"erm": {}}, "targets": ["east"], "seeds": [0]}
    options = options_of_job({**recorded, "settings": {"lr_drop_after": 0.6}}, ["lr_schedule", "lr_drop_after"])
    assert (options["lr_schedule"], options["lr_drop_after"]) == ("step", 0.6)


def test_a_job_whose_seeds_no_option_can_name_is_not_run_again(command: Command) -> None:
    assert command(*TOY, "--strategy", "erm", "--out", "job").status == 0
    assert command("--out", "job", "--add", "--seed", 7).status == 0
    again = command("--config", "job/config.json", "--out", "second")
    assert again.status == 2
    assert "its seeds are [0, 7], which --seed and --trials cannot name" in again.err


def test_what_is_wrong_with_a_file_is_named(command: Command) -> None:
    Path("job.toml").write_text('strategi = "erm"\n')
    outcome = command("--config", "job.toml")
    assert outcome.status == 2
    assert "--config: job.toml: there is no option 'strategi'; did you mean 'strategy'?" in outcome.err
    Path("job.toml").write_text("=")
    assert "--config: job.toml cannot be read (TOMLDecodeError" in command("--config", "job.toml").err
