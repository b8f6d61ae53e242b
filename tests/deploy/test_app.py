"""A run that Flower started makes the job directory that the command would, and continues one that is there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from filelock import FileLock
from flwr.app import Context, Message
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from fedhess.base.errors import FederationError, UsageError
from fedhess.deploy.app import app as server_app
from fedhess.deploy.app import nodes_of_run
from fedhess.domains import BENCHMARKS
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.flower_compat import keeps_node_ids, read_run_config
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.reopening import open_finished, open_recorded
from fedhess.results.formats import table
from fedhess.results.summary import summarise
from fedhess.settings.run_config import RunConfig
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Run the apps as Flower does, with everything in the run config."""
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.chdir(tmp_path)
    memory.MEMORY.clear()

    def run(settings: dict[str, Any], run_dir: str, app: Any = client_app, **more: int) -> None:
        run_config = RunConfig.checked(settings).to_run_config() | {"run-dir": run_dir}
        run_config |= {key.replace("_", "-"): value for key, value in more.items()}
        count = len(settings["sources"]) + len(settings["targets"])
        nodes = [{"partition-id": index, "num-partitions": count} for index in range(count)]
        run_in_process(server_app, app, run_config=run_config, node_configs=nodes)

    return run


@pytest.fixture
def settings(command: Command, deployed: Callable[..., None]) -> dict[str, Any]:
    """Run the command and return the settings that it resolved; its job is in ``theirs``."""
    assert command(*TOY, "--strategy", "hgp", "--out", "theirs").status == 0
    config = json.loads(Path("theirs/config.json").read_text(encoding="utf-8"))
    return config["settings"] | {
        "domains_options": config["dataset"]["options"],
        "sources": ["north", "south", "west"],
        "targets": ["east"],
        "strategy": "hgp",
    }


def test_a_recorded_run_has_the_sources_and_classes_that_it_had(
    settings: dict[str, Any], deployed: Callable[..., None]
) -> None:
    deployed(settings | {"sources": ["south", "north"]}, "ours")
    job = open_recorded(Path("ours"))
    assert (job.runs[0].config.sources, job.runs[0].config.targets) == (("south", "north"), ("east",))
    assert len(job.classes) == 4, "by which a sick run is told"
    assert Path("ours/summary.md").read_text().startswith(table(summarise(job)) + "\n")


def timeless(file: Path, *but: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", *but)} for row in rows]


def test_the_job_directory_is_that_of_the_command(
    settings: dict[str, Any], deployed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(settings, "ours")
    ours, theirs = ({str(f.relative_to(d)) for f in Path(d).rglob("*") if f.is_file()} for d in ("ours", "theirs"))
    assert theirs - ours == {"east/0/partition.json"}, "the nodes know what they hold, the server does not"
    assert ours <= theirs
    assert timeless(Path("ours/east/0/rounds.jsonl")) == timeless(Path("theirs/east/0/rounds.jsonl"))
    weights = [max(Path(folder).rglob("checkpoint/*.safetensors")).read_bytes() for folder in ("ours", "theirs")]
    assert weights[0] == weights[1]
    assert Path("ours/summary.md").read_text() == Path("theirs/summary.md").read_text()
    said = capsys.readouterr().out
    assert "fedhess: round 3, east (target): accuracy" in said
    assert "fedhess: Toy: accuracy (%) on the target domain" in said
    config = json.loads(Path("ours/config.json").read_text())
    assert (config["dataset"]["digest"], config["strategies"]["hgp"]["beta"]) == ("", 0.01)
    assert [run.strategy for run in open_finished(Path("ours")).runs] == ["hgp"]
    *command, given = config["command"]
    assert (command, read_run_config([given])["strategy"]) == (["flwr", "run", ".", "--run-config"], "hgp")


def test_where_no_directory_is_named_the_run_id_names_it(
    settings: dict[str, Any], deployed: Callable[..., None]
) -> None:
    deployed(settings | {"rounds": 1}, "")
    assert Path("runs/flower-1/summary.md").exists()


def test_the_same_run_started_again_continues_with_the_same_bits(
    settings: dict[str, Any], deployed: Callable[..., None]
) -> None:
    deployed(settings, "straight")
    with pytest.raises(
        UsageError, match=r"^run-dir: .* was made with another configuration; give the same options, or begin"
    ):
        deployed(settings | {"rounds": 2}, "straight")

    def out_of_power(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.metadata.group_id == "3":
            raise OSError("out of power")
        return client_app(message, context)

    with pytest.raises(FederationError, match="out of power"):
        deployed(settings, "broken", out_of_power)
    assert RunDirectory(Path("broken/east/0")).completed_round() == 2
    deployed(settings, "broken")
    rows = [timeless(Path(name) / "east/0/rounds.jsonl", "bytes_down", "sent") for name in ("straight", "broken")]
    assert rows[0] == rows[1]
    weights = [max(Path(name).rglob("checkpoint/*.safetensors")).read_bytes() for name in ("straight", "broken")]
    assert weights[0] == weights[1]


def test_a_run_goes_back_to_an_earlier_round_and_comes_to_the_same_bits(
    settings: dict[str, Any], deployed: Callable[..., None]
) -> None:
    deployed(settings, "job")
    run = RunDirectory(Path("job/east/0"))
    straight, rows = max(Path("job").rglob("checkpoint/*.safetensors")).read_bytes(), timeless(run.rounds_file)
    poisoned = run.load_checkpoint()
    assert poisoned is not None
    for tensor in poisoned.tensors.values():
        tensor.add_(1000.0)
    run.save_checkpoint(poisoned)
    deployed(settings, "job", resume_from=2)
    assert max(Path("job").rglob("checkpoint/*.safetensors")).read_bytes() == straight
    dropped = ("bytes_down", "sent")
    again = timeless(run.rounds_file, *dropped)
    assert again == [{key: value for key, value in row.items() if key not in dropped} for row in rows]
    (entry,) = json.loads(Path("job/config.json").read_text(encoding="utf-8"))["additions"]
    assert (entry["from_round"], entry["command"][:2]) == ({"east/0": 2}, ["flwr", "run"])
    deployed(settings, "job", resume_from=2)
    entries = json.loads(Path("job/config.json").read_text(encoding="utf-8"))["additions"]
    assert [each["from_round"] for each in entries] == [{"east/0": 2}, {"east/0": 2}], "how it came about, whole"

    with pytest.raises(UsageError, match=r"--resume-from 1: job/east/0 keeps the checkpoints of rounds .*2, 3"):
        deployed(settings, "job", resume_from=1)
    with pytest.raises(UsageError, match=r"--resume-from 2: there is no job in .*/elsewhere"):
        deployed(settings, "elsewhere", resume_from=2)
    with pytest.raises(UsageError, match=r"--resume-from 2: it continues a job; give --run-dir its directory"):
        deployed(settings, "", resume_from=2)


def test_two_runs_at_once_in_one_directory_are_refused(settings: dict[str, Any], deployed: Callable[..., None]) -> None:
    deployed(settings | {"rounds": 1}, "shared")
    with FileLock("shared/.lock"), pytest.raises(UsageError, match="run-dir: another process runs the job in shared"):
        deployed(settings | {"rounds": 1}, "shared")


def test_a_directory_that_cannot_be_written_is_named(settings: dict[str, Any], deployed: Callable[..., None]) -> None:
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"run-dir: cannot write to file.job: Not a directory"):
        deployed(settings, os.path.join("file", "job"))


def test_a_run_continues_with_the_nodes_and_the_data_that_it_had(
    settings: dict[str, Any], deployed: Callable[..., None]
) -> None:
    deployed(settings, "ours")
    directory = RunDirectory(Path("ours/east/0"))
    assert sorted(directory.nodes()) == ["east", "north", "south", "west"]
    assert len(set(directory.nodes().values())) == 4
    changed = directory.clients() | {"south": directory.clients()["south"] | {"data-digest": "another"}}
    directory.record_clients(list(changed.values()))
    with pytest.raises(FederationError, match=r"client south has other data than when the run began: .* was another;"):
        deployed(settings, "ours", resume_from=2)
    assert "client south has other data" in (directory.failure() or "")


def test_a_client_keeps_its_node_for_the_run_unless_the_operator_registered_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path / "run")
    who = {"client": 0, "role": "source"}
    directory.record_clients([{"domain": "photo", "node": 2**63} | who, {"domain": "sketch", "node": 5} | who])
    grid = cast("Grid", object())
    assert nodes_of_run(grid, directory) == {"photo": 2**63, "sketch": 5}
    assert nodes_of_run(grid, None) == {}
    file = tmp_path / "nodes.json"
    monkeypatch.setenv("FEDHESS_NODES", str(file))
    assert nodes_of_run(grid, directory) == {"photo": 2**63, "sketch": 5}, "nobody was registered by the command"
    file.write_text('{"photo": 7}', encoding="utf-8")
    assert nodes_of_run(grid, directory) == {"photo": 7}
    for text in ("{", "[1]", '{"photo": "seven"}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=r"nodes.json cannot be read .*; expected clients with the ids of"):
            nodes_of_run(grid, directory)


def test_a_simulations_nodes_may_have_other_ids_when_it_continues() -> None:
    class Simulated:
        nodes_are_fixed = True

    assert keeps_node_ids(cast("Grid", object()))
    assert not keeps_node_ids(cast("Grid", Simulated()))
    assert not keeps_node_ids(InMemoryGrid.__new__(InMemoryGrid))
