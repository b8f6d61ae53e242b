from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache

import pytest
import torch
from crossing import sampled
from torch import nn

from fedhess.base.errors import UsageError
from fedhess.domains import TensorDomain
from fedhess.models import MODELS, HeadedModel, create_model, prepare_inputs, prepared_shape

IMAGES = (3, 32, 32)
QUICK = ("mlp", "mnist-cnn", "resnet18", "cnn", "lite0", "lite0-features")  # one of each kind
SMALL = {"resnet18": 512, "resnet50": 2048, "mlp": 390, "mnist-cnn": 128, "cnn": 256}  # the others have 1280


@lru_cache
def kept(name: str) -> HeadedModel:
    return build(name)


def build(name: str, seed: int = 0, outputs: int = 5) -> HeadedModel:
    return create_model(name, input_shape=prepared_shape(name, IMAGES), outputs=outputs, seed=seed, pretrained=False)


@pytest.mark.parametrize("name", sampled(MODELS, QUICK))
def test_logits_are_the_head_of_the_features(name: str):
    model = kept(name)
    batch = torch.rand(4, *prepared_shape(name, IMAGES), generator=torch.Generator().manual_seed(0))
    features = model.features(batch)
    assert features.shape == (4, SMALL.get(name, 1280))
    assert isinstance(model.head, nn.Linear)
    torch.testing.assert_close(model(batch), features @ model.head.weight.T + model.head.bias)
    assert model(batch).shape == (4, 5)


@pytest.mark.parametrize("name", sampled(MODELS, QUICK))
def test_every_parameter_is_trained(name: str):
    model = deepcopy(kept(name))
    if name.endswith("-features"):
        nn.init.normal_(model.featurizer.up.weight)  # at zero it shields the layer below for one step
    batch = torch.rand(4, *prepared_shape(name, IMAGES), generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(batch), torch.tensor([0, 1, 2, 3])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", sampled(MODELS, QUICK))
def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(name: str):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other = kept(name).state_dict(), build(name, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    same = build(name).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_models_that_threads_create_at_once_have_the_weights_of_their_seed():
    expected = [build("mlp", seed=seed).state_dict() for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            created = list(threads.map(lambda seed: build("mlp", seed=seed).state_dict(), range(4)))
            for one, other in zip(expected, created, strict=True):
                assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["mlp", "lite0-features", "resnet18"])
def test_a_model_computes_in_float64_when_asked(name: str):
    model = build(name).double()
    assert model(torch.rand(2, *prepared_shape(name, IMAGES))).dtype == torch.float64


@pytest.mark.parametrize("name", ["mlp", "resnet18", "lite0"])
def test_bytes_and_fractions_of_255_are_the_same_image(name: str):
    model = build(name).eval()
    pixels = torch.randint(0, 256, (2, *IMAGES), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(pixels), model(pixels / 255), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
def test_training_changes_no_running_statistic_and_draws_no_random_number(name: str):
    model = build(name).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    state = torch.get_rng_state()
    batch = torch.rand(3, *IMAGES, generator=torch.Generator().manual_seed(0))
    first = model(batch)
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, model.eval()(batch)), "training and evaluation compute the same"


def test_an_unknown_model_is_refused_with_the_nearest_names():
    for call in (
        lambda: create_model("resnet81", input_shape=IMAGES, outputs=2, seed=0),
        lambda: prepared_shape("resnet81", IMAGES),
        lambda: prepare_inputs("resnet81", TensorDomain("a", torch.zeros(1), labels=torch.zeros(1))),
    ):
        with pytest.raises(UsageError, match="unknown model 'resnet81'; did you mean 'resnet18'"):
            call()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "lite0", "lite0-features"])
def test_examples_that_are_no_rgb_images_are_refused(name: str):
    with pytest.raises(UsageError, match=rf"{name} takes RGB images .* got examples of shape \(2, 14, 14\)"):
        create_model(name, input_shape=prepared_shape(name, (2, 14, 14)), outputs=1, seed=0, pretrained=False)
