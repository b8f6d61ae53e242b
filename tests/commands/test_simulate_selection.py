"""The command with several settings, cross-validation, split targets and epochs, on jobs of one strategy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message

from fedhess import diagnose
from fedhess.base.errors import UsageError
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.jobs.reopening import open_finished, open_recorded, require_inner_runs
from fedhess.jobs.workers import worker
from fedhess.results.domain_views import view_domains
from fedhess.results.models import find_models
from tests.conftest import Outcome

FREE = ["--domains", "Toy", "--domains-args", "holdout=0.25,free=true", "--rounds", "4", "--local-steps", "1"]
FREE += ["--batch-size", "8", "--server-optimizer", "SGD", "--server-lr", "1", "--evaluate-every", "1", "--l2", "0"]
BRIEF = [*FREE, "--strategy", "erm", "--target", "east", "--trials", "1", "--quiet", "--lr", "0.1"]

Command = Callable[..., Outcome]


def test_cross_validation_is_added_to_a_finished_job(command: Command) -> None:
    assert command(*BRIEF, "--out", "job").status == 0
    before = Path("job/east/0/rounds.jsonl").read_bytes()
    with pytest.raises(UsageError, match="has no run of erm without east and north"):
        require_inner_runs(open_recorded(Path("job")))
    again = command(*BRIEF, "--resume", "--out", "job", "--selection", "lodo")
    assert again.status == 0, again.err
    assert "selection by leave-one-domain-out cross-validation" in again.out
    assert Path("job/east/0/rounds.jsonl").read_bytes() == before
    job = open_recorded(Path("job"))
    require_inner_runs(job)
    assert job.selection == "lodo", "a report is by what the job was resumed with"
    summary = Path("job/summary.json").read_bytes()
    assert command(*BRIEF, "--resume", "--out", "job").status == 0
    assert Path("job/summary.json").read_bytes() == summary, "a job that is resumed keeps its selector"
    assert command(*BRIEF, "--resume", "--out", "job", "--selection", "source").status == 0
    assert open_recorded(Path("job")).selection == "source"


def test_setting_that_diverges_leaves_the_choice_to_the_others(command: Command) -> None:
    outcome = command(*BRIEF[:-2], "--out", "job", "--variants", "lr=0.1; lr=1e300")
    assert outcome.status == 0, outcome.err
    assert "job/variant-1/east/0 (lr=1e+300) stopped; the other settings go on." in " ".join(
        outcome.err.replace("|", " ").split()
    )
    summary = json.loads(Path("job/summary.json").read_text())
    assert summary["strategies"]["erm"]["selected_settings"] == {"east": ["lr=0.1"]}
    single = command(*BRIEF[:-2], "--out", "single", "--lr", "1e300")
    assert single.status == 1, "without others there is nothing to report"


def test_source_that_evaluates_no_trained_model_does_not_bring_back_the_untrained_one(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def __call__(self, message: Message, context: Context) -> Message:
            number = message.content.config_records.get(protocol.CONFIG, {}).get(protocol.ROUND, 0)
            where = (message.metadata.message_type, context.node_config["partition-id"])
            if where == (protocol.EVALUATE, 2) and number > 0:
                raise TimeoutError("still busy")
            return client_app(message, context)

    monkeypatch.setattr(worker, "client_app", Slow())
    outcome = command(*BRIEF, "--out", "job", "--quorum", "2")
    assert outcome.status == 0, outcome.err
    (selected,) = json.loads(Path("job/summary.json").read_text())["strategies"]["erm"]["selected_rounds"]["east"]
    assert selected > 0
    assert "n/a" not in next(line for line in outcome.out.splitlines() if line.startswith("| erm")).split("|")[2]
    gap = "- erm, target east, seed 0: rounds are compared without west"
    assert outcome.out.rstrip().endswith(gap)
    assert f"{gap}\n\nwhat was sent" in Path("job/summary.md").read_text()


def test_analysis_is_of_the_selected_setting_or_of_the_one_that_is_named(command: Command) -> None:
    settings = "lr=1e300; lr=0.1; lr=0.2"
    assert command(*BRIEF[:-2], "--out", "job", "--variants", settings, "--split", "domainbed").status == 0
    summary = json.loads(Path("job/summary.json").read_text())["strategies"]["erm"]
    diagnosed = command("job", "--json", of=diagnose)
    assert diagnosed.status == 0, diagnosed.err
    (run,) = json.loads(diagnosed.out)["runs"]
    assert [f"lr={(1e300, 0.1, 0.2)[run['setting']]}"] == summary["selected_settings"]["east"]
    assert [run["round"]] == summary["selected_rounds"]["east"]
    assert "among 3 settings" in json.loads(diagnosed.out)["protocol"]
    (model,) = find_models(open_finished(Path("job/variant-2")), "last")
    run = model.run
    assert run.config.lr == 0.2
    assert run.config.split == "domainbed"
    (target,) = [view for view in view_domains(model, most_examples=99) if view.role == "target"]
    assert target.split == "in split (36)", "what its accuracy is read on; the rest stays the oracle's"
    recorded = {row["split"]: row["accuracy"] for row in run.directory.rows() if row["round"] == 4}
    assert target.accuracy == pytest.approx(recorded["in"])


def test_steps_and_epochs_exclude_each_other(command: Command) -> None:
    outcome = command(*BRIEF, "--local-epochs", "2")
    assert outcome.status == 2
    assert "--local-epochs 2: --local-steps 1 is given too; give one of them" in outcome.err
    steps = FREE.index("--local-steps")
    epochs = command(*FREE[:steps], *FREE[steps + 2 :], *BRIEF[len(FREE) :], "--local-epochs", "2", "--out", "job")
    assert epochs.status == 0, epochs.err
    assert "4 rounds x 2 local epochs" in epochs.out
