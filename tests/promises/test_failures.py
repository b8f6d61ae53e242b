"""A client that fails, lies or stays silent is named, counted and left out; too few of them end the run loudly."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from centralised import cross_entropy, gradient_and_hgp, matrix
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from misbehaving import ALL, BAD, TARGET_PARTITION, Misbehaving, crash
from toy import SOURCES

from fedhess.alignment import DomainStrategy
from fedhess.alignment.strategy import LocalTraining, Reference
from fedhess.base.errors import FederationError, StrategyError, UsageError
from fedhess.domains.benchmark import SOURCE
from fedhess.federation import protocol
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.batches import round_batch
from fedhess.federation.client.examples import local_client, simulated_client
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.models.building import build_model
from fedhess.strategies.fish import Fish

Run = Callable[..., Any]
HGP = {"strategy": "hgp", "strategy_args": {"alpha": 0.02, "beta": 0.05}}


def refuse(message: Message, reply: Message) -> Message:
    return Message(Error(1234, "not today"), reply_to=message)


released = threading.Event()


@pytest.fixture(autouse=True)
def clients_hang_no_longer_than_their_test() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def hang(message: Message, reply: Message) -> Message:
    released.wait(60)
    return reply


def altered(key: str, change: Callable[[dict[str, Array]], None]) -> Callable[[Message, Message], Message]:
    def act(message: Message, reply: Message) -> Message:
        arrays = dict(reply.content.array_records[key])
        change(arrays)
        reply.content[key] = ArrayRecord(arrays)
        return reply

    return act


def poison(value: float) -> Callable[[dict[str, Array]], None]:
    def change(arrays: dict[str, Array]) -> None:
        name, array = next(iter(arrays.items()))
        values = torch.tensor(array.numpy())
        values.view(-1)[0] = value
        arrays[name] = Array(values)

    return change


def reshape(arrays: dict[str, Array]) -> None:
    name = next(iter(arrays))
    arrays[name] = Array(torch.zeros(3, 5, dtype=torch.float64))


def recast(arrays: dict[str, Array]) -> None:
    name, array = next(iter(arrays.items()))
    arrays[name] = Array(torch.tensor(array.numpy()).float())


def rename(arrays: dict[str, Array]) -> None:
    arrays["surprise"] = arrays.pop(next(iter(arrays)))


def lie_about_shape(arrays: dict[str, Array]) -> None:
    name, array = next(iter(arrays.items()))
    arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:-8])


def garbage(arrays: dict[str, Array]) -> None:
    name, array = next(iter(arrays.items()))
    arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=b"not an array at all")


STATISTICS, MODEL = protocol.STATISTIC_VALUES, protocol.MODEL
FAULTS: dict[str, tuple[str, Callable[[Message, Message], Message], str]] = {
    "raises in the exchange": (protocol.STATISTICS, crash, "OSError: the disk is gone"),
    "raises in training": (protocol.TRAIN, crash, "OSError: the disk is gone"),
    "refuses": (protocol.TRAIN, refuse, "error 1234: not today"),
    "hangs in the exchange": (protocol.STATISTICS, hang, "no reply within 0.5 s"),
    "hangs in training": (protocol.TRAIN, hang, "no reply within 0.5 s"),
    "sends NaN statistics": (protocol.STATISTICS, altered(STATISTICS, poison(float("nan"))), "1 of 1564 values"),
    "sends an infinite update": (protocol.TRAIN, altered(MODEL, poison(float("inf"))), "values that are not finite"),
    "sends statistics of another shape": (protocol.STATISTICS, altered(STATISTICS, reshape), "has shape (3, 5), expec"),
    "sends weights of another shape": (protocol.TRAIN, altered(MODEL, reshape), "has shape (3, 5), expected"),
    "sends another dtype": (protocol.TRAIN, altered(MODEL, recast), "has dtype torch.float32, expected torch.float64"),
    "sends other names": (protocol.TRAIN, altered(MODEL, rename), "unexpected ['surprise']"),
    "sends too few bytes": (protocol.TRAIN, altered(MODEL, lie_about_shape), "expected a .npy array"),
    "sends nothing": (
        protocol.TRAIN,
        lambda message, _: Message(RecordDict(), reply_to=message),
        "expected arrays 'arra",
    ),
    "sends garbage": (protocol.TRAIN, altered(MODEL, garbage), "expected a .npy array"),
}
IMPATIENT = {protocol.STATISTICS: {"exchange_deadline": 0.5}, protocol.TRAIN: {"deadline": 0.5}}  # the others: hours


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_client_is_named_and_the_round_goes_on(
    toy_run: Run, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    message_type, act, reason = FAULTS[fault]
    settings = IMPATIENT[message_type] if act is hang else {}
    finished = toy_run(app=Misbehaving(message_type, act), quorum=2, rounds=1, **HGP, **settings)
    south = [row for row in finished.rows if row["domain"] == "south" and row["round"] == 1]
    (failure,) = south[0]["failures"][:1]
    assert reason in failure["reason"]
    assert failure["phase"].startswith("exchange" if message_type == protocol.STATISTICS else "train")
    assert south[0]["train_loss"] is None
    assert "client south" in caplog.text
    others = [row for row in finished.rows if row["domain"] in ("north", "west") and row["round"] == 1]
    assert all(row["failures"] == [] and row["train_loss"] is not None for row in others)


def test_the_others_train_as_if_the_failing_client_were_not_there(toy_run: Run) -> None:
    without = toy_run(sources=("north", "west"), targets=("east",), **HGP).tensors
    app = Misbehaving(protocol.STATISTICS, crash)
    with_failing = toy_run(app=app, quorum=2, **HGP).tensors
    # Partition ids differ between the two runs; batches must depend on the domain alone.
    assert all(torch.equal(without[name], with_failing[name]) for name in without)


def test_server_alignment_subtracts_like_from_like_when_a_client_drops_between_exchanges(toy_run: Run) -> None:
    def crash_in_the_second(message: Message, reply: Message) -> Message:
        return crash(message, reply) if message.content.array_records[protocol.GIVEN] else reply

    settings = {"partition": "dirichlet", "clients_per_domain": 2, "dirichlet_min_size": 2, "quorum": 5, "rounds": 1}
    app = Misbehaving(protocol.STATISTICS, crash_in_the_second)
    finished = toy_run(app=app, strategy="server_alignment", strategy_args={"step": 0.05}, **settings)
    config = finished.server.config
    model = build_model(config)
    gradients, sizes = {}, {}
    for position in range(6):
        domain, client = simulated_client(config, position)
        data = local_client(config, domain=domain, role=SOURCE, client=client).parts[domain]
        loss = cross_entropy(model, round_batch(data, config, step=0))
        gradients[domain, client] = gradient_and_hgp(model, loss)[0]
        sizes[domain, client] = data.train_size

    def mean(values: dict[tuple[str, int], torch.Tensor]) -> torch.Tensor:
        """Average by domain, in each by examples."""
        each = []
        for domain in config.sources:
            keys = [key for key in values if key[0] == domain]
            each.append(sum(sizes[key] * values[key] for key in keys) / sum(sizes[key] for key in keys))
        return torch.stack(each).mean(0)

    reference = mean(gradients).detach()
    pulls = {
        key: matrix(torch.autograd.grad(0.5 * (value - reference).square().sum(), list(model.head.parameters())))
        for key, value in gradients.items()
        if key != simulated_client(config, BAD)
    }
    torch.testing.assert_close(finished.server.strategy._direction, 2 * mean(pulls), rtol=0, atol=1e-12)


def test_below_the_quorum_the_run_stops_and_names_who_when_and_why(toy_run: Run) -> None:
    with pytest.raises(FederationError) as caught:
        toy_run(app=Misbehaving(protocol.TRAIN, crash, first_round=2), **HGP)
    text = str(caught.value)
    assert "round 2: 2 of 3 source clients completed phase 'train', 3 are needed (--quorum)" in text
    assert "round 2, train, client south: error 2: OSError: the disk is gone" in text
    with pytest.raises(FederationError, match="0 of 3 source clients completed phase 'train'"):
        toy_run(app=Misbehaving(protocol.TRAIN, crash, partitions=ALL), quorum=1)


class Watched(Fish):
    phases: ClassVar[list[LocalTraining]] = []

    def local_training(self, phase: LocalTraining, reference: Reference) -> dict[str, torch.Tensor]:
        self.phases.append(phase)
        return super().local_training(phase, reference)


@pytest.mark.parametrize("quorum", [0, 2])
def test_a_client_that_fails_on_one_of_its_domains_has_not_trained(toy_run: Run, quorum: int) -> None:
    """Each client holds all three domains, and Fish has it train on one after the other."""
    sent: list[Message] = []

    def crash_on_the_second(message: Message, reply: Message) -> Message:
        sent.append(message)
        return crash(message, reply) if len(sent) == 2 else reply

    settings = {
        "strategy": f"{__name__}:Watched",
        "partition": "lambda",
        "clients": 3,
        "heterogeneity": 0.5,
        "rounds": 1,
    }
    app = Misbehaving(protocol.TRAIN, crash_on_the_second)
    if quorum:
        toy_run(app=app, quorum=quorum, **settings)
        assert [client.label for client in Watched.phases[-1].outcome.participants] == ["north", "west"]
        return
    with pytest.raises(FederationError, match=r"round 1: 2 of 3 source .*\n  round 1, train, client south: .*is gone"):
        toy_run(app=app, **settings)


class FlowersOwn(InProcessGrid):
    __module__ = "flwr.grid"


def wrap(grid: InProcessGrid) -> InProcessGrid:
    """Make it a grid of Flower's own, where all clients work at the same time."""
    grid.__class__ = FlowersOwn
    return grid


def test_where_the_strategy_raised_on_the_first_client_it_is_the_strategys_error(toy_run: Run) -> None:
    """Whoever was not waited for then."""
    error = Error(protocol.STRATEGY_RAISED, "strategy 'mine', penalty: it is odd")

    def act(message: Message, reply: Message) -> Message:
        return Message(error, reply_to=message) if message.metadata.dst_node_id == 1002 else hang(message, reply)

    with pytest.raises(StrategyError, match=r"(?s)client south: strategy 'mine', penalty: it is odd.*not waited for"):
        toy_run(app=Misbehaving(protocol.TRAIN, act, partitions=[1, 2]), wrap=wrap, deadline=600.0, **HGP)


class ReturnsNone(DomainStrategy):
    def local_training(self, phase: Any, reference: Any) -> Any:
        phase.mean_update()


class ReturnsPart(DomainStrategy):
    def local_training(self, phase: Any, reference: Any) -> Any:
        return dict(list(phase.mean_update().items())[1:])


class Counts(DomainStrategy):
    def reference(self, ask: Any) -> Any:
        self.state["rounds"] = 1  # type: ignore[assignment]
        return {}


class GoesAlone(DomainStrategy):
    def compute_gradient(self, step: Any) -> None:
        step.run().batch.loss.backward()


class OfEachExample(DomainStrategy):
    def objective(self, step: Any, reference: Any) -> Any:
        return super().objective(step, reference).expand(3)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ReturnsNone, r"ReturnsNone', local_training: TypeError: expected the mean update by name, got NoneType"),
        (ReturnsPart, r"ReturnsPart', local_training: TypeError: expected '.*' of shape \(.*\) in it, got None"),
        (Counts, r"Counts: state\['rounds'\]: expected a tensor, got 1; keep it as torch.tensor"),
        (GoesAlone, r"GoesAlone', step: TypeError: compute_gradient: expected it to call step.backward\(\)"),
        (
            OfEachExample,
            r"OfEachExample', penalty: TypeError: objective: .* of a single number, shape \(\), got shape \(3,\)",
        ),
    ],
)
def test_a_mistake_in_a_strategy_is_named_with_its_hook(toy_run: Run, tmp_path: Path, cls: type, message: str) -> None:
    with pytest.raises((StrategyError, UsageError), match=message):
        toy_run(strategy=f"{__name__}:{cls.__name__}", directory=tmp_path / "run")


@pytest.mark.parametrize("message_type", [protocol.STATISTICS, protocol.TRAIN])
def test_once_too_few_are_left_the_silent_are_not_waited_for(toy_run: Run, message_type: str) -> None:
    """South refuses, west is silent."""

    def act(message: Message, reply: Message) -> Message:
        return {1002: refuse, 1003: hang}.get(message.metadata.dst_node_id, lambda _, answer: answer)(message, reply)

    app = Misbehaving(message_type, act, partitions=ALL)
    began = time.monotonic()
    with pytest.raises(
        FederationError, match=r"1 of 3 source .*, 3 are needed(?s:.*)south: error 1234: not today"
    ) as caught:
        toy_run(app=app, wrap=wrap, deadline=600.0, exchange_deadline=600.0, **HGP)
    assert time.monotonic() - began < 30
    assert "client west: not waited for: too few would be left" in str(caught.value)
    undisturbed = toy_run(wrap=wrap, **HGP)
    assert all(torch.equal(value, undisturbed.tensors[name]) for name, value in toy_run(**HGP).tensors.items())


def without_a_number(arrays: dict[str, Array]) -> None:
    arrays[protocol.CALIBRATION] = Array(torch.tensor(arrays[protocol.CALIBRATION].numpy()).fill_(float("nan")))


PRIVATE = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_clip": {"update": 0.1}}


@pytest.mark.parametrize(
    ("act", "reason", "sources", "changes"),
    [
        (crash, "the disk is gone", SOURCES, {}),
        (altered(protocol.COUNTS, without_a_number), "values that are not finite", SOURCES[:1], {}),
        (crash, "the disk is gone", SOURCES, PRIVATE),
    ],
    ids=["crash", "NaN", "private"],
)
def test_a_target_that_cannot_evaluate_is_reported_and_training_goes_on(
    toy_run: Run, act: Any, reason: str, sources: tuple[str, ...], changes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = Misbehaving(protocol.EVALUATE, act, first_round=0, partitions=[len(sources)])
    rows = toy_run(app=app, sources=sources, **changes).rows
    target = [row for row in rows if row["role"] == "target"]
    assert [row["accuracy"] for row in target] == [None] * 4
    assert all(reason in row["failures"][0]["reason"] for row in target)
    assert all(f"round {number}, evaluate, client east: " in caplog.text for number in range(4))


def as_another(message: Message, reply: Message) -> Message:
    record = dict(reply.content.config_records[protocol.CONFIG]) | {"domain": "north", "role": "source"}
    reply.content[protocol.CONFIG] = ConfigRecord(record)
    return reply


@pytest.mark.parametrize(
    ("act", "partition", "message"),
    [
        (crash, BAD, r"(?s)no client for south.*3 nodes identified themselves.*the disk is gone"),
        (as_another, TARGET_PARTITION, "no client for east"),
    ],
)
def test_a_missing_domain_is_an_error_at_the_start(toy_run: Run, act: Any, partition: int, message: str) -> None:
    app = Misbehaving(protocol.IDENTIFY, act, first_round=0, partitions=[partition])
    with pytest.raises(FederationError, match=message):
        toy_run(app=app, exchange_deadline=1.5)


def test_a_client_that_lost_the_model_is_sent_it_again(toy_run: Run) -> None:
    from fedhess.federation.client import memory

    complaints: list[int] = []

    class Forgetful:
        def __call__(self, message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            if partition == BAD:
                memory.MEMORY.clear()
            reply = client_app(message, context)
            if reply.content.config_records.get(protocol.CONFIG, {}).get(protocol.MODEL_MISSING):
                complaints.append(partition)
            return reply

    remembered, forgotten = toy_run(**HGP), toy_run(app=Forgetful(), **HGP)
    assert all(torch.equal(remembered.tensors[n], forgotten.tensors[n]) for n in remembered.tensors)
    assert forgotten.server.federation.ledger.failures == []
    # From the first loss on it is sent the model with every message: two exchanges, training, evaluation.
    # In one process the next client finds the memory empty too. Each says so once and never has to ask again.
    assert sorted(complaints) == [BAD, BAD + 1]
    weights = 8 * sum(value.numel() for value in remembered.tensors.values())
    down = {row["domain"]: row["bytes_down"] for row in forgotten.rows if row["round"] == 3}
    assert down["north"] < 1.1 * weights
    assert 3.9 * weights < down["south"] < 4.2 * weights


def test_a_model_that_is_held_is_sent_once_a_round(toy_run: Run) -> None:
    rows = toy_run(**HGP, rounds=4).rows
    weights = sum(value.numel() for value in toy_run(rounds=1).tensors.values()) * 8
    for row in rows:
        if row["round"] > 0 and row["role"] == "source":
            assert row["bytes_down"] < 1.05 * weights
            assert row["bytes_up"] < 1.05 * weights
    last = [row for row in rows if row["round"] == 4]
    assert all(row["bytes_down"] > 0.95 * weights for row in last)


def test_the_model_and_its_average_are_each_sent_once_a_round(toy_run: Run) -> None:
    args = {"n_converge": 1, "n_tolerance": 9, "tolerance_ratio": 9.0}  # the valley begins at once and does not end
    run = toy_run(strategy="erm", rounds=4, average="swad", average_args=args, domains_options={"holdout": 0.25})
    weights = sum(value.numel() for value in run.tensors.values()) * 8
    for row in run.rows:
        if row["round"] > 1 and row["role"] == "source":
            assert 1.95 * weights < row["bytes_down"] < 2.05 * weights


def test_a_second_reply_to_one_message_counts_for_nothing(toy_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Doubling(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)  # sent now: the server reads their ids
            return (reply for reply in replies for _ in range(2))

    def wrap(grid: InProcessGrid) -> InProcessGrid:
        grid.__class__ = Doubling
        return grid

    once, twice = toy_run(**HGP), toy_run(wrap=wrap, **HGP)
    assert all(torch.equal(once.tensors[name], twice.tensors[name]) for name in once.tensors)
    assert "round 1, train: dropped an unexpected reply" in caplog.text
    assert twice.server.federation.ledger.failures == []
