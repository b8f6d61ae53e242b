"""Rows and checkpoints on disk: strict JSON, whole files, and every kind of state that must come back."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from rows import source
from torch import nn

from fedhess.base.errors import StorageError, UsageError
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.server.checkpoint import Checkpoint, flower_state, snapshot
from fedhess.federation.server.flower_round import FlowerRounds
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.run_directory import RunDirectory

FIRST = source(0, "a", 0.5)
OPTIMIZERS = {
    **{name: {} for name in ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam")},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9},
}


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_()


def global_model(optimizer: str, **args: Any) -> GlobalModel:
    torch.manual_seed(3)
    return GlobalModel(small_model(), optimizer=optimizer, lr=0.1, optimizer_args=args)


def update(model: GlobalModel, number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        name: torch.rand(model.tensors[name].shape, generator=generator).to(model.tensors[name].dtype)
        for name in model.update_names
    }


# -- Rows --------------------------------------------------------------------------------------------------------------


def test_rows_come_back(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b")
    assert directory.rows() == []
    rows = [source(0, "a", 0.1), source(1, "a", 1 / 3, failures=[{"round": 1}])]
    for row in rows:
        directory.append([row])
    assert directory.rows() == rows
    with directory.rounds_file.open("a") as stream:
        stream.write('{"rou')
    assert directory.rows() == rows, "without the line that was cut short"


def test_rows_are_strict_json(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append([{"loss": float("nan"), "distance": float("inf"), "accuracy": 0.5}])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = directory.rounds_file.read_text(encoding="utf-8")
    assert json.loads(line, parse_constant=refuse) == {"loss": None, "distance": None, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("round 1", "JSONDecodeError"),
        ("[1, 2]", "line 2: expected a row of"),
        ('{"loss": 0.5}', "line 2: expected a row of .*; missing: round, domain, role, .* failures"),
    ],
)
def test_line_that_is_no_row_is_named(line: str, reason: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.append([FIRST])
    with directory.rounds_file.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UsageError, match=rf"rounds.jsonl is damaged .*{reason}.* or delete .*/run to make this run"):
        directory.rows()


# -- Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "args"), OPTIMIZERS.items())
def test_every_optimizer_continues_with_the_same_bits(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    model, directory = global_model(name, **args), RunDirectory(tmp_path)
    for number in range(3):
        model.step(update(model, number), lr=0.1)
    directory.append([])
    directory.save_checkpoint(snapshot(3, model, ({}, {})))
    resumed = global_model(name, **args)
    checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    checkpoint.restore(resumed)
    for number in range(3, 6):
        model.step(update(model, number), lr=0.1)
        resumed.step(update(resumed, number), lr=0.1)
    assert model.tensors.keys() == resumed.tensors.keys()
    for key, value in model.tensors.items():
        assert torch.equal(value, resumed.tensors[key]), key


def test_only_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.completed_round() is None
    for number in range(3):
        directory.save_checkpoint(Checkpoint(number, {"x": torch.tensor([float(number)])}))
    (tmp_path / "checkpoint" / ".half").write_text("left by a kill")
    directory.tidy()
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["checkpoint.json", "round-000002.safetensors"]
    assert directory.completed_round() == 2


def test_rows_after_the_checkpoint_are_cut_off_where_the_run_goes_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append([FIRST])
    assert directory.load_checkpoint() is None
    directory.rewind()
    assert directory.rows() == []
    directory.append([FIRST])
    directory.save_checkpoint(Checkpoint(0, {"x": torch.zeros(1)}))
    directory.append([FIRST | {"round": 1}])
    assert directory.load_checkpoint() is not None
    assert directory.rows() == [FIRST, FIRST | {"round": 1}], "reading changes nothing"
    directory.rewind()
    assert directory.rows() == [FIRST]


def test_selected_model_is_the_one_that_the_checkpoint_knows(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    model = {number: {"x": torch.tensor([float(number)])} for number in range(9)}

    def evaluated(number: int) -> None:
        directory.append([FIRST | {"round": number}])
        directory.save_selected(number, model[number])

    def files() -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in (tmp_path / "selected").iterdir())

    assert directory.selected_round() is None
    directory.save_checkpoint(Checkpoint(0, {"x": torch.zeros(1)}))
    for number in (1, 2):
        evaluated(number)
    assert files() == [2], "no checkpoint has come to either"
    directory.save_checkpoint(Checkpoint(3, {"x": torch.zeros(1)}))
    for number in (4, 5):
        evaluated(number)
    assert files() == [2, 5], "the run may go back to round 3"
    (tmp_path / "selected" / ".half").write_text("left by a kill")
    directory.rewind()
    assert files() == [2]
    assert torch.equal(directory.load_selected()["x"], model[2]["x"])
    directory.save_checkpoint(Checkpoint(6, {"x": torch.zeros(1)}, unreported={"trained": {}}))
    evaluated(6)
    assert files() == [2, 6], "the evaluation is not settled"
    directory.settle()
    assert files() == [6]
    assert (directory.selected_round(), directory.load_selected()) == (6, model[6])


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match=r"cannot write to .*/file/run: Not a directory; free space or mend"):
        directory.append([{"round": 0}])
    with pytest.raises(StorageError, match="cannot write to"):
        directory.save_checkpoint(Checkpoint(0))


# -- What plain Flower strategies remember -----------------------------------------------------------------------------

FLOWER = [
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
    lambda: flower.FedAvgM(server_momentum=0.9),
    flower.FedAvg,
    flower.FedMedian,
    flower.FedTrimmedAvg,
]


def train_round(strategy: Any, arrays: ArrayRecord, number: int) -> ArrayRecord:
    """Hand a strategy two clients' replies."""
    strategy.current_arrays = (
        {key: array.numpy() for key, array in arrays.items()}
        if hasattr(strategy, "tau")
        else arrays.copy()  # FedOpt keeps arrays, others a record
    )
    generator, replies = np.random.default_rng(number), []
    for _ in range(2):
        content = ArrayRecord([array.numpy() + generator.normal(size=array.shape) for array in arrays.values()])
        content = ArrayRecord(dict(zip(arrays, content.values(), strict=True)))
        metrics = MetricRecord({"num-examples": 5})
        request = Message(RecordDict({"c": ConfigRecord()}), dst_node_id=1, message_type="train")
        replies.append(Message(RecordDict({"arrays": content, "metrics": metrics}), reply_to=request))
    aggregated, _ = strategy.aggregate_train(number, replies)
    return aggregated  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", FLOWER, ids=[getattr(make, "__name__", "FedAvgM") for make in FLOWER])
def test_plain_flower_strategy_continues_with_the_same_bits(make: Any, tmp_path: Path) -> None:
    directory, model = RunDirectory(tmp_path), global_model("SGD")
    with run_identity(1):
        strategy, arrays = make(), ArrayRecord([np.zeros((2, 3)), np.ones(4)])
        for number in range(1, 4):
            arrays = train_round(strategy, arrays, number)
        directory.append([])
        directory.save_checkpoint(snapshot(3, model, FlowerRounds(strategy).state()))
        resumed, checkpoint = make(), directory.load_checkpoint()
        assert checkpoint is not None
        FlowerRounds(resumed).restore(checkpoint.tensors, checkpoint.plain)
        expected, found = (train_round(one, arrays.copy(), 4) for one in (strategy, resumed))
    assert [array.data for array in expected.values()] == [array.data for array in found.values()]


def test_numbers_single_arrays_and_records_come_back() -> None:
    first, second = flower.FedAvg(), flower.FedAvg()
    vars(first).update(norm=0.25, single=np.arange(3), several=(np.ones(1), np.ones((2, 2))), nothing=None)
    checkpoint = snapshot(1, global_model("SGD"), FlowerRounds(first).state())
    checkpoint.plain = json.loads(checkpoint.header())["plain"]
    FlowerRounds(second).restore(checkpoint.tensors, checkpoint.plain)
    state = vars(second)
    assert (state["norm"], state["nothing"]) == (0.25, None)
    assert state["single"].tolist() == [0, 1, 2]
    assert [array.shape for array in state["several"]] == [(1,), (2, 2)]


def test_state_that_no_checkpoint_can_hold_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    strategy = flower.FedAvg()
    vars(strategy)["friends"] = {1: object()}
    with caplog.at_level(logging.WARNING):
        flower_state(strategy)
        flower_state(strategy)
    assert [record.getMessage() for record in caplog.records] == [
        "FedAvg.friends is a dict, which no checkpoint can hold: a resumed run has the constructor's"
    ]
