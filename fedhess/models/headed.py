"""The structure of every model: a featurizer, then a linear head whose curvature is aligned."""

import torch
from torch import Tensor, nn

from fedhess.base.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUXILIARY = "auxiliary."  # prefix of the names of a strategy's tensors
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class HeadedModel(nn.Module):
    """A featurizer followed by a head.

    Args:
        featurizer: (B, ...) inputs, uint8 or float, to (B, D) features; scales its inputs itself.
        head: (B, D) to (B, C) logits, or (B, 1) for the logistic form.
        head_name: Name of the head in the original network, ``featurizer.network``; weights files use this name.

    Attributes:
        autocast: The featurizer's autocast dtype; features are then converted to float32, so that the head and its
            statistics compute in float32. None computes everything in the dtype of the parameters.
        auxiliary: A module that a strategy trains beside featurizer and head, used by its objective alone.
    """

    def __init__(self, featurizer: nn.Module, head: nn.Linear, *, head_name: str = "") -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head
        self.head_name = head_name
        self.autocast: torch.dtype | None = None
        self.auxiliary: nn.Module | None = None

    def features(self, inputs: Tensor) -> Tensor:
        """Compute the (B, D) features that the head sees."""
        if self.autocast is None:
            features: Tensor = self.featurizer(inputs)
            return features
        with torch.autocast(inputs.device.type, dtype=self.autocast):
            features = self.featurizer(inputs)
        return features.float()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (B, C) logits."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


def to_unit(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring inputs to a floating-point type; bytes become numbers in [0, 1]."""
    values = inputs.to(dtype)
    return values if inputs.is_floating_point() else values / 255


class ScaleImages(nn.Module):
    """Scale (B, 3, H, W) images, uint8 in 0..255 or float in [0, 1], to (x - mean) / std by channel.

    Args:
        mean: By channel.
        std: By channel.
        size: Height and width. Images of another size are resized bilinearly; None leaves every size as it is.
    """

    mean: Tensor
    std: Tensor
    layout = torch.channels_last  # of the output: convolutions are faster with it, on a CPU too

    def __init__(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scale, in the dtype of ``mean``."""
        unit = to_unit(images, self.mean.dtype)
        if self.size is not None and unit.shape[-2:] != self.size:
            unit = nn.functional.interpolate(unit, size=self.size, mode="bilinear", antialias=True)
        return (unit - self.mean).div_(self.std).contiguous(memory_format=self.layout)


class FrozenNorms(nn.Module):
    """Keep every batch norm inside in evaluation mode, also while training.

    Running statistics stay those of the pretraining, so that no statistic of a client's images travels outside the
    protocol and small batches do no harm; scale and shift are trained. Source: DomainBed, ``networks.ResNet``
    (``freeze_bn``) at commit 7df6f06, the commit of its published results; later code leaves it off by default.

    Attributes:
        frozen: Set it to False to have batch norms normalise by their batch in training mode and update their running
            statistics, which then travel with the weights.
    """

    frozen = True

    def train(self, mode: bool = True) -> "FrozenNorms":
        """Set the mode of everything but frozen batch norms."""
        super().train(mode)
        for module in self.modules():
            if self.frozen and isinstance(module, BATCH_NORMS):
                module.eval()
        return self


def require_images(name: str, input_shape: tuple[int, ...]) -> None:
    """Raise UsageError unless examples are RGB images (3, H, W); ``name`` is the model's."""
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise UsageError(f"{name} takes RGB images (3, H, W), got examples of shape {input_shape}; choose --model mlp")
