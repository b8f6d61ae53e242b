"""A run that goes on from its checkpoint reports what happened between the last evaluation and the interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fedhess import protocol, workplace
from fedhess.client import app as client_app
from fedhess.errors import FederationError
from fedhess.runs import RunDirectory

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
    workplace.forget_everything()
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
    assert before.plain["unreported"]["seconds"] > 0
    before.plain["unreported"]["seconds"] = 1000.0
    RunDirectory(tmp_path / "run").save_checkpoint(before)
    rows = toy_run(app=Failing(all_from=9), directory=tmp_path / "run", **settings).rows
    assert {row["seconds"] >= 1000.0 for row in rows if row["round"] == 4} == {True}
