"""Augmentation, precision and batch norms in real federated runs on small pictures."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from centralised import Round, hgp_pulls, pulled
from flwr.app import Context, Message
from pictures import pictures_config
from torch import Tensor
from toy import SOURCES

from fedhess.alignment import run_forward
from fedhess.base.seeds import batch_indices, seeded_generator
from fedhess.domains import BENCHMARKS
from fedhess.federation.client import batches, memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.augmentation import augment
from fedhess.federation.client.batches import round_batch
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.federation.tensors import encode_tensors
from fedhess.models import MODELS
from fedhess.models.building import build_model
from fedhess.models.prepared import local_domain

Run = Callable[..., Any]
HGP = {"strategy": "hgp", "strategy_args": {"alpha": 0.02, "beta": 0.05, "scale": "absolute"}}


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Pictures", "pictures:open_pictures")
    monkeypatch.setitem(MODELS, "tiny", "pictures:create_tiny")


@pytest.fixture
def run(toy_run: Run) -> Run:
    """Run the pictures as `toy_run` runs the toy."""
    return lambda **changes: toy_run(**(pictures_config(**changes).model_dump(exclude={"stand_in_for"})))


def test_a_step_is_trained_on_the_augmented_batch_of_its_name() -> None:
    config = pictures_config(seed=5)
    data = local_domain(config, domain="south", role="source")
    inputs, labels = round_batch(data, config, step=7)
    chosen = batch_indices(24, batch_size=8, step=7, key=(5, "south", 0))
    generator = seeded_generator(5, "south", 0, "augmentation", 7)
    assert torch.equal(inputs, augment(data.data.inputs(chosen), generator=generator))
    assert torch.equal(labels, data.data.labels[chosen])
    plain, _ = round_batch(data, pictures_config(seed=5, augment="none"), step=7)
    assert torch.equal(plain, data.data.inputs(chosen))


def test_several_batches_are_augmented_each_as_its_step_is() -> None:
    config = pictures_config()
    data = local_domain(config, domain="north", role="source")
    together, labels = round_batch(data, config, step=4, batches=3)
    singles = [round_batch(data, config, step=step)[0] for step in (4, 5, 6)]
    assert len(labels) == 24
    assert torch.equal(together, torch.cat(singles))
    assert not torch.equal(singles[0], singles[1])


def test_the_full_batch_is_augmented_anew_in_every_step() -> None:
    config = pictures_config(batch_size=0)
    data = local_domain(config, domain="north", role="source")
    first, second, again = (round_batch(data, config, step=step)[0] for step in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len(first) == 24


def test_augmented_hgp_is_the_centralised_algorithm_on_the_same_batches(run: Run) -> None:
    settings = {"dtype": "float64", "rounds": 6, **HGP}
    federated = run(**settings).tensors
    config = pictures_config(**settings)
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    objective = pulled(hgp_pulls(0.02, 0.05))
    weights = dict.fromkeys(SOURCES, 1 / len(SOURCES))
    for step in range(6):
        model.train()
        data = {domain: local_domain(config, domain=domain, role="source") for domain in SOURCES}
        batches = {domain: round_batch(own, config, step=step) for domain, own in data.items()}
        held = {domain: own.train_size for domain, own in data.items()}
        optimizer.zero_grad()
        objective(model, Round(step + 1, config.seed, batches, weights, held)).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(federated[name], value, rtol=0, atol=1e-10)


def test_statistics_and_step_share_one_augmentation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    def counted(images: Tensor, **given: Any) -> Tensor:
        shapes.append(images.shape)
        return augment(images, **given)

    monkeypatch.setattr(batches, "augment", counted)
    run(rounds=3, **HGP)
    assert len(shapes) == 3 * len(SOURCES), "two exchanges, a step and an evaluation a round"


def test_nothing_that_is_evaluated_is_augmented(run: Run) -> None:
    plain, augmented = (run(rounds=1, augment=name).rows for name in ("none", "domainbed"))
    begin = [[row["loss"] for row in rows if row["round"] == 0] for rows in (plain, augmented)]
    assert begin[0] == begin[1]
    assert len(begin[0]) == 4
    trained = [[row["train_loss"] for row in rows if row["round"] == 1][:3] for rows in (plain, augmented)]
    assert all(one != other for one, other in zip(*trained, strict=True))


SETTINGS: dict[str, dict[str, Any]] = {
    "one step": HGP,
    "several steps": HGP | {"local_steps": 3, "momentum": 0.9},
    "bf16": HGP | {"precision": "bf16"},
    "averaged batch norms": HGP | {"batchnorm": "averaged", "local_steps": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_client_that_forgets_everything_ends_with_the_same_bits(name: str, run: Run, toy_run: Run) -> None:
    class Forgetful:
        def __call__(self, message: Message, context: Context) -> Message:
            memory.MEMORY.clear()
            return client_app(message, context)

    kept = run(**SETTINGS[name]).tensors
    config = pictures_config(**SETTINGS[name]).model_dump(exclude={"stand_in_for"})
    lost = toy_run(app=Forgetful(), **config).tensors
    assert all(torch.equal(kept[key], lost[key]) for key in kept)


def test_a_model_that_runs_otherwise_is_another_working_model() -> None:
    store = memory.Memory()
    received = store.receive("m", encode_tensors(build_model(pictures_config()).state_dict()))
    plain, rounded, averaged, again = (
        store.model(pictures_config(**changes), received, writable=False)
        for changes in ({}, {"precision": "bf16"}, {"batchnorm": "averaged"}, {})
    )
    assert [model.autocast for model in (plain, rounded, averaged, again)] == [None, torch.bfloat16, None, None]
    assert [model.featurizer.frozen for model in (plain, rounded, averaged, again)] == [True, True, False, True]


# -- Precision ---------------------------------------------------------------------------------------------------------


def test_bf16_computes_the_featurizer_in_bfloat16_and_gives_the_head_float32() -> None:
    config = pictures_config(precision="bf16")
    model = build_model(config)
    seen: list[torch.dtype] = []
    model.featurizer.convolution.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    inputs, labels = round_batch(local_domain(config, domain="north", role="source"), config, step=0)
    forward = run_forward(model, inputs, labels)
    assert seen == [torch.bfloat16]
    assert forward.features.dtype == forward.batch.loss.dtype == torch.float32
    exact = build_model(pictures_config()).features(inputs)
    torch.testing.assert_close(forward.features, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(forward.features, exact)
    torch.testing.assert_close(model(inputs), model.head(forward.features))


def test_bf16_trains_to_nearly_the_same_model_and_sends_float32(run: Run) -> None:
    exact, rounded = (run(precision=name, **HGP).tensors for name in ("float32", "bf16"))
    for name, value in rounded.items():
        assert value.dtype == exact[name].dtype
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)
    assert not torch.equal(rounded["head.weight"], exact["head.weight"])


# -- Batch norms -------------------------------------------------------------------------------------------------------


def test_frozen_batch_norms_keep_their_running_statistics(run: Run) -> None:
    start = build_model(pictures_config()).state_dict()
    end = run(**HGP).tensors
    running = [name for name in end if "running" in name]
    assert len(running) == 2
    assert all(torch.equal(start[name], end[name]) for name in running)


@pytest.mark.parametrize("strategy", ["erm", "hgp", "sagm"])
def test_averaged_batch_norms_have_the_mean_of_what_the_clients_saw(run: Run, strategy: str) -> None:
    changes = {"batchnorm": "averaged", "strategy": strategy, "rounds": 1, "local_steps": 2, "dtype": "float64"}
    end = run(**changes).tensors
    config = pictures_config(**changes)
    start = build_model(config)
    ends = []
    for domain in SOURCES:
        model = copy.deepcopy(start).train()
        data = local_domain(config, domain=domain, role="source")
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        for step in range(2 if strategy == "erm" else 1):
            inputs, labels = round_batch(data, config, step=step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        ends.append(model.state_dict())
    running = "featurizer.norm.running_mean"
    assert int(end["featurizer.norm.num_batches_tracked"]) == 2, "exchanges and passes elsewhere do not count"
    assert not torch.equal(end[running], start.state_dict()[running])
    if strategy == "erm":
        for name in (running, "featurizer.norm.running_var"):
            expected = sum(state[name] for state in ends) / 3
            torch.testing.assert_close(end[name], expected, rtol=0, atol=1e-12)


def test_averaged_batch_norms_normalise_by_the_batch_in_training_and_by_the_mean_in_evaluation() -> None:
    config = pictures_config(batchnorm="averaged")
    model = build_model(config)
    data = local_domain(config, domain="north", role="source")
    inputs, _ = round_batch(data, config, step=0)
    assert not torch.equal(model.train().features(inputs), build_model(pictures_config()).features(inputs))
    state = copy.deepcopy(model.state_dict())
    evaluate_model(model, data)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
