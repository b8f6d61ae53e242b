"""What averages over rounds are of, to the bit; when SWAD's valley begins and ends; what is evaluated and kept."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from torch import Tensor
from toy import DOMAINS

from fedhess.base.errors import UsageError
from fedhess.federation import protocol
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.server.averaging import Swad
from fedhess.federation.server.checkpoint import below
from fedhess.federation.server.round_selection import BestSoFar, select_round
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.federation.tensors import decode_tensors

Run = Callable[..., Any]
Models = dict[int, dict[str, Tensor]]
HELD_OUT = {"domains_options": {"holdout": 0.25}}
SWAD = {"n_converge": 3, "n_tolerance": 6, "tolerance_ratio": 0.3}


class Recorder:
    """Lets everything through, and keeps the models that each domain was sent to evaluate, by round, in order."""

    def __init__(self) -> None:
        self.evaluated: dict[str, dict[int, list[dict[str, Tensor]]]] = {domain: {} for domain in DOMAINS}

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == protocol.EVALUATE and protocol.MODEL in message.content.array_records:
            number = message.content.config_records[protocol.CONFIG][protocol.ROUND]
            sent = {name: value.clone() for name, value in decode_tensors(message.content[protocol.MODEL]).items()}
            domain = DOMAINS[context.node_config["partition-id"]]  # type: ignore[index]
            self.evaluated[domain].setdefault(number, []).append(sent)  # type: ignore[arg-type]
        return client_app(message, context)

    def models(self, domain: str = "east") -> Models:
        """The models that a domain evaluated, each after the only message of its round."""
        return {number: model for number, (model,) in self.evaluated[domain].items()}


def mean_of(models: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: (sum(m[name].double() for m in models) / len(models)).to(models[0][name].dtype) for name in models[0]}


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value), name


@pytest.fixture
def both(toy_run: Run) -> Callable[..., tuple[Models, Any, Recorder]]:
    """Run without an average and with one: the model after each round, then the second run and what it sent."""

    def run(average: str, args: dict[str, Any], **settings: Any) -> tuple[Models, Any, Recorder]:
        plain, recorder = Recorder(), Recorder()
        without = toy_run(app=plain, **settings)
        memory.MEMORY.clear()
        averaged = toy_run(app=recorder, average=average, average_args=args, **settings)
        assert_equal(averaged.tensors, without.tensors)  # training goes on as if there were none
        return plain.models(), averaged, recorder

    return run


@pytest.mark.parametrize(
    ("settings", "args", "which"),
    [
        ({"strategy": "hgp", "dtype": "float32"}, {"start": 0}, [1, 2, 3, 4, 5]),
        ({"strategy": "fedadam"}, {"start": 0.4, "every": 2}, [2, 4]),
    ],
)
def test_swa_is_the_mean_of_the_recorded_models_to_the_bit(
    both: Callable[..., tuple[Models, Any, Recorder]], settings: dict[str, Any], args: dict[str, Any], which: list[int]
) -> None:
    models, run, recorder = both("swa", args, rounds=5, **settings)
    sent = recorder.models()
    for number in range(6):
        chosen = [models[each] for each in which if each <= number]
        expected = mean_of(chosen) if chosen else models[number]
        assert_equal(sent[number], expected)
        assert {row["averaged"] for row in run.rows if row["round"] == number} == {len(chosen)}
    assert_equal(run.server.evaluated.tensors, expected)


def test_ema_has_its_closed_form(both: Callable[..., tuple[Models, Any, Recorder]]) -> None:
    models, run, _ = both("ema", {"decay": 0.7}, rounds=4)
    weights = {1: 0.7**3, 2: 0.3 * 0.7**2, 3: 0.3 * 0.7, 4: 0.3}
    for name, value in run.server.evaluated.tensors.items():
        expected = torch.stack([weight * models[number][name] for number, weight in weights.items()]).sum(0)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)


# -- SWAD: the rounds that are averaged, against algorithm 1 of the paper as it stands there --------------------------


def algorithm_1(losses: list[float], n_s: int, n_e: int, r: float) -> list[int]:
    """Return the evaluations, from 0, that the paper's algorithm averages after all of these losses; [] for none."""
    t_s, t_e, threshold = 0, len(losses) - 1, None
    for i in range(len(losses)):
        if threshold is None:
            if i >= n_s - 1 and losses[i - n_s + 1] == min(losses[i - j] for j in range(n_s)):
                t_s = i - n_s + 1
                threshold = r / n_s * sum(losses[i - j] for j in range(n_s))
        elif i >= n_e - 1 and threshold < min(losses[i - j] for j in range(n_e)):
            t_e = i - n_e
            break
    return [] if threshold is None else list(range(t_s, t_e + 1))


def averaged_by(swad: Swad, losses: list[float]) -> list[int]:
    """Feed models that are powers of two, one an evaluation: their sum names those that are in the mean."""
    for number, loss in enumerate(losses):
        swad.add({"weight": torch.tensor(2.0**number, dtype=torch.float64)}, number + 1)
        if swad.follows_loss:
            swad.observe(loss)
    if swad.count == 0:
        return []
    total = round(float(swad.result()["weight"]) * swad.count)
    found = [number for number in range(len(losses)) if total >> number & 1]
    assert len(found) == swad.count
    return found


FALLING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
CASES = {
    "no valley": (FALLING, []),
    "too few": ([1.0, 2.0], []),
    "begins at once": ([1.0, 1.0, 1.0], [0, 1, 2]),
    "oldest is the minimum": ([*FALLING, 4.1, 4.2], [5, 6, 7]),
    "a tie is a minimum": ([5.0, 3.0, 3.0, 4.0], [1, 2, 3]),
    "six over the threshold end it before them": ([1.0, 1.0, 1.0, 1.2, *[1.4] * 6, 0.1], [0, 1, 2, 3]),
    "five do not": ([1.0, 1.0, 1.0, *[1.4] * 5, 1.0], list(range(9))),
    "at the threshold is not over it": ([1.0, 1.0, 1.0, *[1.3] * 8], list(range(11))),
    "a loss without number is the worst": ([2.0, float("inf"), 1.0, 1.1, 1.2], [2, 3, 4]),
}


@pytest.mark.parametrize("name", CASES)
def test_swad_averages_the_valley(name: str) -> None:
    losses, expected = CASES[name]
    assert averaged_by(Swad(SWAD, rounds=99), losses) == expected == algorithm_1(losses, 3, 6, 1.3)


def test_swad_is_algorithm_1_on_any_losses_and_windows_wherever_it_is_interrupted() -> None:
    random.seed(0)
    lengths = set()
    for _ in range(400):
        # Means and thresholds that are exact in binary: rounding decides nothing.
        n_s, n_e, ratio = random.choice([1, 2, 4]), random.randint(1, 7), random.choice([0.0, 0.125, 0.25])
        losses = [random.randint(8, 16) / 8 for _ in range(random.randint(1, 30))]
        args = {"n_converge": n_s, "n_tolerance": n_e, "tolerance_ratio": ratio}
        swad, cut = Swad(args, rounds=99), random.randint(0, len(losses))
        for number, loss in enumerate(losses):
            if number == cut:
                tensors, plain = swad.state()
                swad = Swad(args, rounds=99)
                swad.restore(dict(tensors), dict(plain))
            swad.add({"weight": torch.tensor(2.0**number, dtype=torch.float64)}, number + 1)
            if swad.follows_loss:
                swad.observe(loss)
        expected = algorithm_1(losses, n_s, n_e, 1 + ratio)
        assert swad.count == len(expected)
        lengths.add(len(expected))
        if expected:
            assert float(swad.result()["weight"]) * swad.count == pytest.approx(sum(2.0**each for each in expected))
    assert len(lengths) > 10


def test_rounds_between_evaluations_enter_together() -> None:
    swad = Swad(SWAD, rounds=99)
    for number in range(8):
        swad.add({"weight": torch.tensor(float(number))}, number + 1)
        if number % 2:
            swad.observe(1.0)
    assert swad.count == 8
    assert float(swad.result()["weight"]) == 3.5


def test_a_run_with_swad_evaluates_and_keeps_the_mean_of_its_valley(
    both: Callable[..., tuple[Models, Any, Recorder]],
) -> None:
    """All evaluate the mean; the sources also the model in training, from the start of the valley to its end."""
    args = {"n_converge": 2, "n_tolerance": 1, "tolerance_ratio": 0.0}
    trained, run, recorder = both("swad", args, lr=1.1, batch_size=4, seed=1, rounds=8, **HELD_OUT)
    losses: list[float] = []
    kinds = set()
    for number in range(1, 9):
        rows = [row for row in run.rows if row["round"] == number]
        (loss,) = {row["unaveraged_loss"] for row in rows}
        losses += [] if loss is None else [loss]
        found = algorithm_1(losses, 2, 1, 1.0)
        expected = mean_of([trained[each + 1] for each in found]) if found else trained[number]
        assert {row["averaged"] for row in rows} == {len(found)}
        assert_equal(recorder.models()[number], expected)
        *first, last = recorder.evaluated["north"][number]
        assert_equal(last, expected)
        assert bool(first) == (bool(found) and loss is not None)
        for model in first:
            assert_equal(model, trained[number])
        kinds.add((bool(found), loss is None))
    assert kinds == {(False, False), (True, False), (True, True)}, "before, in and after the valley"
    assert_equal(run.server.evaluated.tensors, expected)


def test_what_the_valley_is_found_by_is_the_sources_validation_loss(toy_run: Run) -> None:
    run = toy_run(rounds=3, average="swad", **HELD_OUT)
    for number in (1, 2, 3):
        rows = [row for row in run.rows if row["round"] == number]
        assert {row["averaged"] for row in rows} == {0}
        mean = sum(row["loss"] for row in rows if row["role"] == "source") / 3
        assert [row["unaveraged_loss"] for row in rows] == pytest.approx([mean] * 4, rel=1e-12)


def test_swad_without_held_out_examples_is_refused(toy_run: Run) -> None:
    with pytest.raises(UsageError, match="--average swad: it follows the loss on examples that the sources hold out"):
        toy_run(rounds=1, average="swad")


@pytest.mark.parametrize("average", ["swa", "ema", "swad"])
def test_a_checkpoint_holds_the_model_that_is_reported(toy_run: Run, tmp_path: Path, average: str) -> None:
    args = {"swa": {"start": 0}, "ema": {}, "swad": {"n_converge": 1}}[average]
    run = toy_run(rounds=4, average=average, average_args=args, directory=tmp_path, **HELD_OUT)
    checkpoint = RunDirectory(tmp_path).load_checkpoint()
    assert checkpoint is not None
    kept = below("model/", checkpoint.tensors) | below("evaluated/", checkpoint.tensors)
    assert_equal(kept, run.server.evaluated.tensors)
    assert not torch.equal(kept["head.weight"], run.tensors["head.weight"])


def test_once_there_is_an_average_no_round_before_it_is_selected(toy_run: Run) -> None:
    rows = toy_run(rounds=4, average="swa", average_args={"start": 0.75}, **HELD_OUT).rows
    for row in rows:
        row["accuracy"] = 0.9 if row["round"] == 1 else 0.5 if row["round"] == 4 else 0.4
    assert select_round(rows) == 4
    assert select_round([row for row in rows if row["round"] < 3]) == 1
    kept = BestSoFar()
    assert [kept.add([row for row in rows if row["round"] == n]) for n in range(5)] == [False, True, False, True, True]
    assert select_round([{key: value for key, value in row.items() if key != "averaged"} for row in rows]) == 1
