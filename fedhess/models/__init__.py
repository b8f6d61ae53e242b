"""Models: a featurizer and a linear head, by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from fedhess.domains.data import DomainData, Notify, keep_silent
from fedhess.errors import UsageError, did_you_mean
from fedhess.models.headed import HeadedModel
from fedhess.models.lite0_features import embed, embedded_shape

__all__ = ["MODELS", "HeadedModel", "create_model", "prepare_inputs", "prepared_shape"]

# Name -> module:function; imported when asked for, since torchvision takes a second.
MODELS: dict[str, str] = {
    "mlp": "fedhess.models.mlp:create_mlp",
    "mnist-cnn": "fedhess.models.mnist_cnn:create_mnist_cnn",
    "resnet18": "fedhess.models.resnet:create_resnet18",
    "resnet50": "fedhess.models.resnet:create_resnet50",
    "lite0": "fedhess.models.lite0:create_lite0",
    "lite0-features": "fedhess.models.lite0_features:create_lite0_features",
}


def create_model(
    name: str, *, input_shape: tuple[int, ...], outputs: int, seed: int, pretrained: bool = True
) -> HeadedModel:
    """Create a model; the same seed gives the same weights, and the global random state is left as it was.

    Args:
        name: One of ``MODELS``.
        input_shape: Of one example as the model sees it: `prepared_shape` of the benchmark's.
        outputs: Logits: C, or 1 for the logistic form.
        seed: Decides every weight that is not pretrained.
        pretrained: Load ImageNet weights where the model has them.

    Returns:
        The model, on the CPU in the default dtype, in training mode.

    Raises:
        UsageError: An unknown name, inputs that the model cannot take, or weights that cannot be had.
    """
    module, _, function = MODELS[_known(name)].partition(":")
    create: Callable[..., HeadedModel] = getattr(import_module(module), function)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(input_shape=input_shape, outputs=outputs, pretrained=pretrained)


def prepared_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape of one example after `prepare_inputs`.

    Args:
        name: One of ``MODELS``.
        input_shape: Of one example of the benchmark.

    Returns:
        The same shape, or that of an embedding.

    Raises:
        UsageError: An unknown name, or images expected and not given.
    """
    return embedded_shape(input_shape) if _known(name) == "lite0-features" else input_shape


def prepare_inputs(
    name: str,
    data: DomainData,
    *,
    device: torch.device | str = "cpu",
    cache_dir: Path | str | None = None,
    notify: Notify = keep_silent,
) -> DomainData:
    """Do what a model wants done once per domain, before training: embed the images for lite0-features, else nothing.

    Args:
        name: One of ``MODELS``.
        data: The domain.
        device: Where to compute.
        cache_dir: Where results are kept.
        notify: Told the progress.

    Returns:
        The domain whose examples the model takes.

    Raises:
        UsageError: An unknown name.
    """
    if _known(name) == "lite0-features":
        return embed(data, device=device, cache_dir=cache_dir, notify=notify)
    return data


def _known(name: str) -> str:
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return name
