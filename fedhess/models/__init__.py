"""Models by name: a featurizer, (B, ...) to (B, D), and a linear head, (B, D) to (B, C).

:func:`create_model` takes a name (of :data:`MODELS`, of an entry point of group ``fedhess.models``,
``package.module:Name`` or ``timm:NAME``), the shape of an example and a seed, and returns a :class:`HeadedModel`.
:func:`prepare_inputs` prepares a domain for a model once, before training.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from fedhess.base.errors import UsageError, did_you_mean
from fedhess.base.loading import installed
from fedhess.domains.domain import DomainData, Notify, keep_silent
from fedhess.domains.images.image_files import ImageDomain
from fedhess.domains.images.pixels import decode_once
from fedhess.models.headed import HeadedModel
from fedhess.models.lite0_features import BACKBONES, describe_backbone, embed, embedded_shape, with_backbone

__all__ = [
    "MODELS",
    "HeadedModel",
    "create_model",
    "describe_preparation",
    "find_model",
    "keeps_images",
    "known_models",
    "prepare_inputs",
    "prepared_shape",
    "whole_network",
]

ENTRY_POINT_GROUP = "fedhess.models"
BATCH = 64  # images checked together
OVERSHOOT = 0.3  # outside [0, 1]: bicubic interpolation adds up to 0.28, and Normalize() takes black to -0.4 or below
TIMM = "timm:"  # prefix of the name of a timm network

# Name -> module:function; imported on demand, since torchvision takes a second.
MODELS: dict[str, str] = {
    "mlp": "fedhess.models.mlp:create_mlp",
    "mnist-cnn": "fedhess.models.mnist_cnn:create_cnn",
    "cnn": "fedhess.models.mnist_cnn:create_cnn",
    "resnet18": "fedhess.models.resnet:create_resnet",
    "resnet50": "fedhess.models.resnet:create_resnet",
    "lite0": "fedhess.models.lite0:create_lite",
    "lite1": "fedhess.models.lite0:create_lite",
    "lite2": "fedhess.models.lite0:create_lite",
    "lite0-features": "fedhess.models.lite0_features:create_features",
    "lite1-features": "fedhess.models.lite0_features:create_features",
    "lite2-features": "fedhess.models.lite0_features:create_features",
}

# Models that normalise images themselves, with the statistics of their pretraining; every timm network does too.
NORMALISING = {"resnet18", "resnet50", "lite0", "lite1", "lite2", *BACKBONES}

# Initial weights are drawn from torch's global random state, which all threads share: an abandoned client that still
# runs in its thread may create a model while the next run creates its own.
_one_at_a_time = threading.Lock()


def create_model(
    name: str, *, input_shape: tuple[int, ...], outputs: int, seed: int, pretrained: bool = True
) -> HeadedModel:
    """Create a model; the same seed gives the same weights, and the global random state is left as it was.

    Args:
        name: See `find_model`.
        input_shape: Shape of one example as the model sees it, from `prepared_shape`.
        outputs: Logits: C, or 1 for the logistic form.
        seed: Decides every weight that is not pretrained.
        pretrained: Load ImageNet weights where the model has them.

    Returns:
        The model, on the CPU in the default dtype, in training mode.

    Raises:
        UsageError: An unknown name, inputs that the model cannot take, weights that cannot be loaded, or a network
            that has no linear head.
    """
    where = MODELS.get(name, "fedhess.models.own:" + ("create_timm" if name.startswith(TIMM) else "create_own"))
    module, _, function = where.partition(":")
    create: Callable[..., HeadedModel] = getattr(import_module(module), function)
    with _one_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: a GPU's generator would not be restored
        return create(name, input_shape=input_shape, outputs=outputs, pretrained=pretrained)


def prepared_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example after `prepare_inputs`: the same, or that of an embedding.

    Raises:
        UsageError: An unknown name, or examples that are not images where the model takes images.
    """
    find_model(name)
    return embedded_shape(name, input_shape) if name in BACKBONES else input_shape


def prepare_inputs(
    name: str,
    data: DomainData,
    *,
    device: torch.device | str = "cpu",
    cache_dir: Path | str | None = None,
    augment: str = "none",
    images: str = "cached",
    image_cache_gb: float | None = None,
    notify: Notify = keep_silent,
) -> DomainData:
    """Prepare a domain for a model once, before training: embed images, or decode image files.

    Args:
        name: See `find_model`. Images are embedded for ``BACKBONES``.
        data: The domain.
        device: Where to compute.
        cache_dir: Where results are kept.
        augment: The augmentation of training batches. Like models of ``NORMALISING``, it needs numbers in [0, 1].
        images: ``"cached"``: decode image files once; ``"streamed"``: whenever they are used.
        image_cache_gb: Most disk space that decoded images may take, GB.
        notify: Receives the progress.

    Raises:
        UsageError: An unknown name, numbers outside the range of images, or no disk space for the results.
    """
    find_model(name)
    if augment != "none" or name in NORMALISING or name.startswith(TIMM):
        _require_unit_images(data, f"--model {name}" if augment == "none" else f"--augment {augment}")
    if name in BACKBONES:
        return embed(name, data, device=device, cache_dir=cache_dir, notify=notify)
    if isinstance(data, ImageDomain) and keeps_images(name, images=images):
        return decode_once(data, cache_dir=cache_dir, limit_gb=image_cache_gb, notify=notify)
    return data


def _require_unit_images(data: DomainData, option: str) -> None:
    """Raise UsageError if float RGB images have values outside [0, 1] by more than ``OVERSHOOT``."""
    if getattr(data, "reads_files", False):
        return  # they are bytes
    first = data.inputs(torch.arange(1))
    if not first.is_floating_point() or first.dim() != 4 or first.shape[1] != 3:
        return
    ranges = torch.stack(
        [torch.stack(data.inputs(part).aminmax()) for part in torch.split(torch.arange(len(data)), BATCH)]
    )
    low, high = float(ranges.min()), float(ranges.max())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise UsageError(
            f"{option}: domain {data.name!r} has images of {low:g} to {high:g}, expected floats in [0, 1]; give bytes, "
            "or what ToTensor() returns: without Normalize(), since the model does that"
        )


def describe_preparation(name: str) -> str:
    """Describe what `prepare_inputs` computes for a model, with a digest of frozen weights."""
    return f"embedded by {describe_backbone(name)}" if name in BACKBONES else "as it is"


def keeps_images(name: str, *, images: str) -> bool:
    """Whether `prepare_inputs` keeps decoded image files for a model."""
    return name not in BACKBONES and images == "cached"


def whole_network(name: str, model: HeadedModel, *, pretrained: bool = True) -> HeadedModel:
    """Put the computation of `prepare_inputs` before a model, so that it takes a domain's examples.

    Args:
        name: See `find_model`.
        model: A model of that name.
        pretrained: Load the ImageNet weights of the part before the model; else the caller must load them.
    """
    return with_backbone(name, model, pretrained=pretrained) if name in BACKBONES else model


def known_models() -> dict[str, str]:
    """Return every model that has a name: the built-in ones, then installed entry points, as ``module:function``."""
    return {**MODELS, **{name: path for name, path in installed(ENTRY_POINT_GROUP).items() if name not in MODELS}}


def find_model(name: str) -> str:
    """Return ``module:function`` of a model: a name of `known_models`, ``package.module:Name`` or ``timm:NAME``.

    Nothing is imported: the model may be installed on other machines only.

    Raises:
        UsageError: An unknown name.
    """
    known = known_models()
    if name not in known and ":" not in name:
        raise UsageError(
            f"--model: unknown model {name!r}; {did_you_mean(name, known)}, timm:NAME, or package.module:Class"
        )
    return known.get(name, name)
