"""Load and use a trained network from its own folder, anywhere, without the run that trained it.

``fedhess export`` writes the folder. This module reads it, without Flower, strategies or data sets.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedhess.base.errors import UsageError
from fedhess.domains.images.image_files import DECODE_ERRORS, describe_failure, read_pixels
from fedhess.models import create_model, prepared_shape, whole_network
from fedhess.models.headed import HeadedModel

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class ExportedConfig(BaseModel):
    """The fields of config.json that are needed to build the network; other fields are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    fedhess_export: Literal[1]
    model: str
    input_shape: tuple[Annotated[int, Field(gt=0)], ...]
    outputs: Annotated[int, Field(gt=0)]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    dtype: Literal["float32", "float64"]
    precision: Literal["float32", "bf16"]
    preprocessing: dict[str, Any]
    run: dict[str, Any] = {}

    @model_validator(mode="after")
    def _names_each_output(self) -> "ExportedConfig":
        if len(self.classes) != max(2, self.outputs):
            raise ValueError(
                f"classes: expected {max(2, self.outputs)} for {self.outputs} outputs, got {len(self.classes)}"
            )
        return self


def read_image(image: Path | str | Image.Image, *, side: int) -> Tensor:
    """Convert an image to the network's input, as in training: RGB, resized without keeping its proportions.

    The network itself scales the pixels and normalises them by channel.

    Args:
        image: A file, or an opened image.
        side: Height and width, pixels.

    Returns:
        (3, side, side) uint8.

    Raises:
        UsageError: The image cannot be decoded.
    """
    try:
        if isinstance(image, Image.Image):
            return read_pixels(image, side)
        with Image.open(image) as opened:
            return read_pixels(opened, side)
    except DECODE_ERRORS as error:
        raise UsageError(f"{image}: expected an image that Pillow can decode; {describe_failure(error)}") from error


class TrainedModel(nn.Module):
    """A trained network, in evaluation mode.

    Attributes:
        network: Its ``featurizer`` and its linear ``head``.
        classes: Names, in the order of the logits.
        transform: Converts an image file to an input; None if inputs are not RGB images in bytes but tensors of
            ``input_shape``.
        input_shape: Shape of one input.
        config: The content of config.json: data, protocol, scores, settings.
    """

    def __init__(self, network: HeadedModel, config: ExportedConfig) -> None:
        super().__init__()
        self.network = network
        self.classes = config.classes
        self.input_shape = config.input_shape
        self.transform: Callable[[Path | str | Image.Image], Tensor] | None = None
        if config.preprocessing.get("transform") is not None:
            self.transform = partial(read_image, side=config.input_shape[-1])
        self.config: dict[str, Any] = config.model_dump(mode="json")
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (B, C) logits of (B, ...) inputs; (B, 1) for the logistic form."""
        logits: Tensor = self.network(inputs)
        return logits

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Compute the (B, C) probability of each class, in the order of ``classes``."""
        logits: Tensor = self(inputs)
        if logits.shape[1] > 1:
            return logits.softmax(1)
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)


def load_exported(model: Path | str, *, device: torch.device | str = "cpu") -> TrainedModel:
    """Load a network that ``fedhess export`` wrote: ``fedhess.load``.

    Args:
        model: The folder.
        device: Where it runs.

    Returns:
        The network in evaluation mode, with its classes and its transform.

    Raises:
        UsageError: There is no such folder, or it is damaged or of another version.
    """
    folder = Path(model)
    config = _read_config(folder)
    network = create_model(
        config.model,
        input_shape=prepared_shape(config.model, config.input_shape),
        outputs=config.outputs,
        seed=config.run.get("seed", 0),  # a user's network may hold random numbers that are not weights
        pretrained=False,
    )
    network = whole_network(config.model, network.to(getattr(torch, config.dtype)), pretrained=False)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UsageError(
            f"{folder / WEIGHTS_FILE} is damaged or of another network than {config.model!r} "
            f"({str(error).splitlines()[0]}); export the model again"
        ) from error
    network.autocast = torch.bfloat16 if config.precision == "bf16" else None
    return TrainedModel(network.to(device), config)


def _read_config(folder: Path) -> ExportedConfig:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UsageError(f"{folder} is no exported model: it has no {CONFIG_FILE}; make one with: fedhess export RUN")
    try:
        text = file.read_text(encoding="utf-8")
        if "fedhess_export" not in text:
            raise UsageError(f"{folder} holds a job, no exported model; make one with: fedhess export {folder}")
        return ExportedConfig.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = ": ".join(filter(None, [".".join(map(str, why["loc"])), why["msg"]])) if why else str(error)
        raise UsageError(f"{file} is damaged or of another version ({reason}); export the model again") from error
