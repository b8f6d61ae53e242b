"""``--config``: options from a file, or from the config.json of an earlier job."""

import json
from collections.abc import Callable
from pathlib import Path

from fedhess.cli.config_file import options_of_job
from tests.conftest import TOY, Outcome

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
