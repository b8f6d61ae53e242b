"""Rows and checkpoints on disk: strict JSON, whole files, and every kind of state that must come back."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from rows import source
from safetensors.torch import save
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


def global_model(optimizer: str, dtype: torch.dtype = torch.float32, **args: Any) -> GlobalModel:
    torch.manual_seed(3)
    return GlobalModel(small_model().to(dtype), optimizer=optimizer, lr=0.1, optimizer_args=args)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "args"), OPTIMIZERS.items())
def test_every_optimizer_continues_with_the_same_bits(
    name: str, args: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model, directory = global_model(name, dtype, **args), RunDirectory(tmp_path)
    for number in range(3):
        model.step(update(model, number), lr=0.1)
    directory.append([])
    directory.save_checkpoint(snapshot(3, model, ({}, {})))
    resumed = global_model(name, dtype, **args)
    checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    checkpoint.restore(resumed)
    for number in range(3, 6):
        model.step(update(model, number), lr=0.1)
        resumed.step(update(resumed, number), lr=0.1)
    assert model.tensors.keys() == resumed.tensors.keys()
    for key, value in model.tensors.items():
        assert torch.equal(value, resumed.tensors[key]), key


def evaluated(directory: RunDirectory, number: int, *, selected: bool = False) -> None:
    """Train and evaluate a round, as far as the directory is concerned."""
    directory.save_checkpoint(Checkpoint(number, {"x": torch.tensor([float(number)])}, unreported={"trained": {}}))
    directory.append([FIRST | {"round": number}])
    if selected:
        directory.save_selected(number, {"x": torch.tensor([float(number)])})
    directory.settle()


def test_checkpoints_of_the_last_two_rounds_and_of_the_selected_one_are_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.completed_round() is None
    for number in range(6):
        evaluated(directory, number, selected=number == 2)
    (tmp_path / "checkpoint" / ".half").write_text("left by a kill")
    directory.tidy()
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["checkpoint.json", *(f"round-00000{number}.safetensors" for number in (2, 4, 5))]
    assert (directory.completed_round(), directory.kept_rounds()) == (5, [2, 4, 5])


@pytest.mark.parametrize(("back", "selected"), [(2, 2), (4, 2), (5, 5), (6, 5)])
def test_run_goes_back_to_a_checkpoint_that_is_kept(back: int, selected: int, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for number in range(7 if back > 4 else 6):
        evaluated(directory, number, selected=number in (2, 5))
    directory.append([FIRST | {"round": 9}])  # after the last checkpoint
    directory.go_back(back)
    checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.server_round, checkpoint.tensors["x"].item(), checkpoint.unreported) == (back, back, {})
    assert [row["round"] for row in directory.rows()] == list(range(back + 1))
    assert (directory.selected_round(), directory.load_selected()["x"].item()) == (selected, selected)
    assert directory.kept_rounds()[-1] == directory.completed_round() == back


def flip_a_bit(file: Path, *, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_flipped_bit_in_a_model_is_found(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    evaluated(directory, 1, selected=True)
    (checkpoint,) = (tmp_path / "checkpoint").glob("*.safetensors")
    (selected,) = (tmp_path / "selected").iterdir()
    flip_a_bit(checkpoint, at=-1)
    with pytest.raises(UsageError, match=r"round-000001.safetensors is damaged .*its sha256 is not the one"):
        directory.load_checkpoint()
    flip_a_bit(selected, at=-2)
    with pytest.raises(UsageError, match=r"selected/round-000001.safetensors is damaged .*its sha256"):
        directory.load_selected()


def test_checkpoint_of_another_run_is_found(tmp_path: Path) -> None:
    one, other = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "other")
    evaluated(one, 1)
    other.save_checkpoint(Checkpoint(1, {"x": torch.tensor([7.0])}))
    name = "checkpoint/round-000001.safetensors"
    (one.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(UsageError, match="its sha256 is not the one that was recorded"):
        one.load_checkpoint()


def test_checkpoint_without_a_sha256_is_an_earlier_versions(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    evaluated(directory, 1)
    index = tmp_path / "checkpoint" / "checkpoint.json"
    recorded = json.loads(index.read_text(encoding="utf-8"))
    del recorded["sha256"]
    index.write_text(json.dumps(recorded), encoding="utf-8")
    with pytest.raises(UsageError, match=r"round-000001.safetensors is damaged .*its sha256 is not the one"):
        directory.load_checkpoint()
    (file,) = (tmp_path / "checkpoint").glob("*.safetensors")
    file.write_bytes(save({"x": torch.zeros(1)}, metadata={"fedhess": json.dumps({"round": 1, "plain": {}})}))
    with pytest.raises(UsageError, match=r"round-000001.safetensors was written by an earlier version, without a sha"):
        directory.load_checkpoint()


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.EIO, "Input/output")])
def test_disk_that_fails_is_not_called_damage(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    evaluated(directory, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(StorageError, match=f"cannot read .*checkpoint.json: {words}.*; check the disk"):
        directory.load_checkpoint()


def test_prepared_links_are_not_followed(tmp_path: Path) -> None:
    foreign, directory = tmp_path / "foreign", RunDirectory(tmp_path / "run")
    foreign.write_text("theirs")
    directory.path.mkdir()
    (directory.path / ".clients.json.new").symlink_to(foreign)
    directory.record_clients([{"domain": "a", "client": 0}])
    directory.rounds_file.symlink_to(foreign)
    with pytest.raises(StorageError, match=r"cannot write to .*/run: Too many levels of symbolic links"):
        directory.append([FIRST])
    assert foreign.read_text() == "theirs"
    assert directory.clients() == {"a": {"domain": "a", "client": 0}}


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

    def evaluate(number: int) -> None:
        directory.append([FIRST | {"round": number}])
        directory.save_selected(number, model[number])

    def files() -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in (tmp_path / "selected").iterdir())

    assert directory.selected_round() is None
    directory.save_checkpoint(Checkpoint(0, {"x": torch.zeros(1)}))
    for number in (1, 2):
        evaluate(number)
    assert files() == [2], "no checkpoint has come to either"
    directory.save_checkpoint(Checkpoint(3, {"x": torch.zeros(1)}))
    for number in (4, 5):
        evaluate(number)
    assert files() == [2, 5], "the run may go back to round 3"
    (tmp_path / "selected" / ".half").write_text("left by a kill")
    directory.rewind()
    assert files() == [2]
    assert torch.equal(directory.load_selected()["x"], model[2]["x"])
    directory.save_checkpoint(Checkpoint(6, {"x": torch.zeros(1)}, unreported={"trained": {}}))
    evaluate(6)
    assert files() == [2, 6], "the evaluation is not settled"
    directory.settle()
    assert files() == [2, 6], "the run may go back to round 3"
    directory.save_checkpoint(Checkpoint(7, {"x": torch.zeros(1)}))
    assert files() == [6]
    assert (directory.selected_round(), directory.load_selected()) == (6, model[6])


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match=r"cannot write to .*/file/run: Not a directory; free space or fix"):
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
