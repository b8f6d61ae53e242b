"""A run that goes on from its checkpoint reports what happened between the last evaluation and the interruption."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from misbehaving import Misbehaving, crash

from fedhess.base.errors import FederationError
from fedhess.federation import protocol
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.server.run_directory import RunDirectory

Run = Callable[..., Any]
SOUTH = 1


class Failing:
    """South fails in round 1; every source client does so from a round on."""

    def __init__(self, *, all_from: int) -> None:
        self.all_from = all_from

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == protocol.TRAIN:
            server_round = message.content.config_records[protocol.CONFIG][protocol.ROUND]
            if server_round >= self.all_from or (server_round == 1 and context.node_config["partition-id"] == SOUTH):
                raise OSError("camera off")
        return client_app(message, context)


def test_failures_and_bytes_before_the_interruption_are_in_the_rows_after_it(toy_run: Run, tmp_path: Path) -> None:
    settings = {"rounds": 4, "evaluate_every": 4, "quorum": 2}
    whole = toy_run(app=Failing(all_from=9), **settings).rows
    memory.MEMORY.clear()
    with pytest.raises(FederationError, match="round 3: 0 of 3"):
        toy_run(app=Failing(all_from=3), directory=tmp_path / "run", **settings)
    resumed = toy_run(app=Failing(all_from=9), directory=tmp_path / "run", **settings).rows

    last, expected = ([row for row in rows if row["round"] == 4] for rows in (resumed, whole))
    assert [row["domain"] for row in expected if row["failures"]] == ["south"]
    assert [row["failures"] for row in last] == [row["failures"] for row in expected]
    assert [row["bytes_up"] for row in last] == [row["bytes_up"] for row in expected]
    again = [new["bytes_down"] - old["bytes_down"] for new, old in zip(last, expected, strict=True)]
    assert all(0 <= more < 0.5 * old["bytes_down"] for more, old in zip(again, expected, strict=True)), "sent anew"


def test_seconds_before_the_interruption_are_in_the_rows_after_it(toy_run: Run, tmp_path: Path) -> None:
    settings = {"rounds": 4, "evaluate_every": 4, "quorum": 2}
    with pytest.raises(FederationError):
        toy_run(app=Failing(all_from=3), directory=tmp_path / "run", **settings)
    before = RunDirectory(tmp_path / "run").load_checkpoint()
    assert before is not None
    assert before.unreported["seconds"] > 0
    before.unreported["seconds"] = 1000.0
    RunDirectory(tmp_path / "run").save_checkpoint(before)
    rows = toy_run(app=Failing(all_from=9), directory=tmp_path / "run", **settings).rows
    assert {row["seconds"] >= 1000.0 for row in rows if row["round"] == 4} == {True}


class Interrupted:
    """The client of north ends the process at its evaluation of a round, unless that is 0; counts who trained when."""

    def __init__(self, *, at: int = 0) -> None:
        self.at, self.trained = at, set[int]()

    def __call__(self, message: Message, context: Context) -> Message:
        config = message.content.config_records.get(protocol.CONFIG, {})
        if message.metadata.message_type == protocol.TRAIN:
            self.trained.add(config[protocol.ROUND])
        if self.at and message.metadata.message_type == protocol.EVALUATE and config[protocol.ROUND] == self.at:
            raise KeyboardInterrupt
        return client_app(message, context)


@pytest.mark.parametrize(("at", "again"), [(2, {3}), (3, set())], ids=["in the middle", "at the end"])
def test_round_that_was_trained_is_only_evaluated_again(toy_run: Run, tmp_path: Path, at: int, again: set[int]) -> None:
    whole = toy_run()
    memory.MEMORY.clear()
    with pytest.raises(KeyboardInterrupt):
        toy_run(app=Interrupted(at=at), directory=tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert directory.completed_round() == at - 1, "one whose evaluation is missing is not complete"
    app = Interrupted()
    resumed = toy_run(app=app, directory=tmp_path / "run")
    assert app.trained == again
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)
    measured = {"seconds", "bytes_down", "sent"}
    expected, found = ([{k: v for k, v in row.items() if k not in measured} for row in rows]
                       for rows in (whole.rows, directory.rows()))  # fmt: skip
    assert found == expected


def test_evaluation_below_the_quorum_is_a_gap_and_the_run_goes_on(
    toy_run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def blind(at: int) -> Misbehaving:
        def act(message: Message, reply: Message) -> Message:
            number = message.content.config_records[protocol.CONFIG][protocol.ROUND]
            return crash(message, reply) if number == at else reply

        return Misbehaving(protocol.EVALUATE, act, first_round=0, partitions=[0, SOUTH])

    whole = toy_run()
    gapped = toy_run(app=blind(2), directory=tmp_path / "run")
    assert all(torch.equal(gapped.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert RunDirectory(tmp_path / "run").completed_round() == 3
    accuracies = {row["domain"]: row["accuracy"] for row in gapped.rows if row["round"] == 2}
    assert [domain for domain, accuracy in accuracies.items() if accuracy is None] == ["north", "south"]
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("fedhess")]
    assert said == (
        "round 2: 1 of 3 source clients completed phase 'evaluate', 3 are needed (--quorum).\n"
        "  round 2, evaluate, clients north, south: error 2: OSError: the disk is gone\n"
        "The run goes on; no table reports this round."
    )
    with pytest.raises(FederationError, match="round 0: 1 of 3 source clients completed phase 'evaluate'"):
        toy_run(app=blind(0))


def test_last_checkpoint_is_on_the_disk_when_the_run_has_ended(
    toy_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink().name))
    toy_run(directory=tmp_path / "run")
    names = ["rounds.jsonl", "round-000003.safetensors", "checkpoint.json", "checkpoint"]
    assert synced == [*names, "round-000003.safetensors", "selected", "run"]
