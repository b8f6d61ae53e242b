"""Small convolutional networks from scratch: the one that DomainBed trains on digits, and one for larger images."""

import torch
from torch import Tensor, nn

from fedhess.base.errors import UsageError
from fedhess.models.headed import HeadedModel, to_unit

# Width and stride of each convolution.
LAYERS = {
    "mnist-cnn": ((64, 1), (128, 2), (128, 1), (128, 1)),
    "cnn": ((32, 2), (64, 2), (128, 2), (256, 2)),
}
# The pixel value in [0, 1] that becomes 0; 1 remains 1. With white as 1 and black as 0, white paper trains slowly.
CENTRES = {"mnist-cnn": 0.0, "cnn": 0.5}
GROUPS = 8


class CnnFeaturizer(nn.Module):
    """Four 3x3 convolutions, each with ReLU and group norm, and a mean over the image; uint8 becomes [0, 1].

    Args:
        channels: Channels of the images.
        layers: Width and stride of each convolution.
        centre: The value in [0, 1] that becomes 0; 1 remains 1.
    """

    def __init__(self, channels: int, layers: tuple[tuple[int, int], ...], *, centre: float) -> None:
        super().__init__()
        self.centre = centre
        (before, stride), *others = layers
        self.first = nn.Conv2d(channels, before, 3, stride=stride, padding=1)
        rest: list[nn.Module] = [nn.ReLU(), nn.GroupNorm(GROUPS, before)]
        for width, stride in others:
            rest += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.ReLU(), nn.GroupNorm(GROUPS, width)]
            before = width
        self.rest = nn.Sequential(*rest)

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, D) features of (B, channels, H, W) images."""
        unit = to_unit(images, self.first.weight.dtype)
        if self.centre:
            unit = (unit - self.centre) / (1 - self.centre)
        features: Tensor = self.rest(self.first(unit))
        return torch.mean(features, dim=(2, 3))


def create_cnn(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create convolutions with a linear head on the spatial mean of each of the last channels.

    ``mnist-cnn``: 64, 128 (stride 2), 128 and 128 channels; Gulrajani and Lopez-Paz, "In search of lost domain
    generalization", ICLR 2021, appendix, the network for ColoredMNIST and RotatedMNIST. ``cnn``, ours: 32, 64, 128 and
    256 channels, each of stride 2, with a 25th of the multiplications per image; pixels are scaled to [-1, 1]. Weights
    have torch's default initialisation.
    """
    del pretrained
    if len(input_shape) != 3:
        raise UsageError(f"{name} takes images (C, H, W), got examples of shape {input_shape}; choose --model mlp")
    layers = LAYERS[name]
    return HeadedModel(CnnFeaturizer(input_shape[0], layers, centre=CENTRES[name]), nn.Linear(layers[-1][0], outputs))
