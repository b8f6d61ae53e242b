"""Networks of a user: ``package.module:Name``, an entry point of group ``fedhess.models``, ``timm:NAME``."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fedhess.base.errors import UsageError
from fedhess.base.loading import find_object
from fedhess.base.users_code import users_code
from fedhess.domains.download import why_no_answer
from fedhess.domains.images.hub import why_unreachable
from fedhess.models import find_model
from fedhess.models.headed import HeadedModel, ScaleImages, require_images
from fedhess.models.split import split_network


def create_own(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create the model of a user's class or function.

    It is called with ``num_classes`` and, if it has parameters of these names, ``input_shape`` and ``pretrained``. The
    network that it returns is split at its head, see `split_network`. In a module without a forward of its own but with
    a ``featurizer`` and a ``head``, the head runs on the output of the featurizer.
    """
    path = find_model(name)
    make: Callable[..., Any] = find_object(path, name=name, kind="model")
    if not callable(make):
        raise UsageError(f"--model: {path} is no model: expected a class or a function, got {make!r}")
    try:
        parameters = inspect.signature(make).parameters
    except ValueError as error:  # raised for a type written in C
        raise UsageError(f"--model: {path} is no model: {error}") from error
    if "num_classes" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise UsageError(
            f"--model: {path} must take num_classes, and may take input_shape and pretrained; it takes "
            f"{', '.join(parameters) or 'nothing'}"
        )
    optional = {"input_shape": input_shape, "pretrained": pretrained}
    given = {key: value for key, value in optional.items() if key in parameters}
    with users_code(f"model {name!r}", "constructor", make):
        network = make(num_classes=outputs, **given)
    if not isinstance(network, nn.Module):
        raise UsageError(f"--model: {path} returned {type(network).__name__}; expected a torch.nn.Module")
    if isinstance(network, HeadedModel):
        return network
    featurizer, head = getattr(network, "featurizer", None), getattr(network, "head", None)
    if type(network).forward is nn.Module.forward and isinstance(featurizer, nn.Module) and isinstance(head, nn.Linear):
        network = nn.Sequential()
        network.add_module("featurizer", featurizer)
        network.add_module("head", head)
    return split_network(network, name=name, input_shape=input_shape, outputs=outputs)


def create_timm(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create a network of timm, ``timm:NAME``, with the scaling and image size that it was trained with."""
    try:
        timm: Any = importlib.import_module("timm")  # an extra, and slow to import
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs timm: pip install 'fedhess[timm]'") from error
    require_images(name, input_shape)
    architecture = name.partition(":")[2]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.4)
        raise UsageError(
            f"--model: timm has no network {architecture!r}; "
            f"{f'near: {chr(44).join(near)}; ' if near else ''}timm.list_models() names them"
        )
    if pretrained:
        _require_weights(name, timm.models.get_pretrained_cfg(architecture))
    try:
        network = timm.create_model(architecture, pretrained=pretrained, num_classes=outputs)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{name} cannot be created: {error}; {OTHERWISE}") from error
    trained: dict[str, Any] = timm.data.resolve_model_data_config(network)
    scale = ScaleImages(tuple(trained["mean"]), tuple(trained["std"]), size=tuple(trained["input_size"][1:]))
    return split_network(network, name=name, input_shape=input_shape, outputs=outputs, scale=scale)


OTHERWISE = "give a file of weights with --weights FILE, or begin from random ones with --no-pretrained"


def _require_weights(name: str, known: Any) -> None:
    """Check within seconds that timm's weights are available: on the hub, in its cache, or at their own URL."""
    if known is None or not known.has_weights:
        raise UsageError(f"timm has no pretrained weights for {name}; {OTHERWISE}")
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (slow to import)

    if known.hf_hub_id:
        files = [known.hf_hub_filename] if known.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        if any(isinstance(try_to_load_from_cache(known.hf_hub_id, file), str) for file in files):
            return
        reason = why_unreachable(known.hf_hub_id, kind="model")
    else:
        reason = why_no_answer([known.url])
    if reason:
        raise UsageError(f"{name} needs its pretrained weights and they cannot be had ({reason}); {OTHERWISE}")
