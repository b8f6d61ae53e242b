"""A federation on a CUDA device is that on the CPU: ``pytest -m gpu``."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import METHODS
from pictures import pictures_config

from fedhess.curvature import HeadBatch, spectral_distance
from fedhess.domains import BENCHMARKS
from fedhess.federation.client.augmentation import apply_at_once, apply_one_by_one, draw
from fedhess.models import MODELS

pytestmark = pytest.mark.gpu
Run = Callable[..., Any]


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_those_of_the_cpu(toy_run: Run, cuda: str, name: str) -> None:
    method = METHODS[name]
    settings = {"strategy": method.strategy, "strategy_args": method.args, "local_steps": 2} | method.changes
    ours, other = (toy_run(device=device, **settings).tensors for device in (cuda, "cpu"))
    for key, value in other.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_deterministic_runs_have_the_same_bits(
    toy_run: Run, cuda: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Pictures", "pictures:open_pictures")
    monkeypatch.setitem(MODELS, "tiny", "pictures:create_tiny")
    config = pictures_config(device=cuda, deterministic=True, precision=precision, strategy="hgp")
    try:
        first, second = (toy_run(**config.model_dump(exclude={"stand_in_for"})).tensors for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_augmented_pixels_are_those_of_the_cpu(cuda: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 31, 24), dtype=torch.uint8, generator=generator)
    parameters = draw(64, size=(31, 24), generator=generator)
    found = apply_at_once(images.to(cuda), parameters)
    torch.testing.assert_close(found.cpu(), apply_one_by_one(images, parameters), rtol=0, atol=1e-4)


def test_spectral_distance_is_that_of_the_cpu(cuda: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 9), (5,)))
    batches = [
        (torch.randn(20, 9, generator=generator, dtype=torch.float64), torch.randint(5, (20,), generator=generator))
        for _ in range(2)
    ]
    ours, other = (
        spectral_distance(
            *(
                HeadBatch(*(part.to(device) for part in (features, labels, weight, bias)))
                for features, labels in batches
            )
        )
        for device in (cuda, "cpu")
    )
    torch.testing.assert_close(ours.cpu(), other, rtol=1e-8, atol=0)
