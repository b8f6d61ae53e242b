"""The small convolutional network that DomainBed trains on digits."""

import torch
from torch import Tensor, nn

from fedhess.base.errors import UsageError
from fedhess.models.headed import HeadedModel, to_unit

WIDTHS = (64, 128, 128, 128)
STRIDES = (1, 2, 1, 1)
GROUPS = 8


class MnistCnnFeaturizer(nn.Module):
    """Four 3x3 convolutions, each with ReLU and group norm, and a mean over the image; uint8 becomes [0, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, WIDTHS[0], 3, padding=1)
        rest: list[nn.Module] = [nn.ReLU(), nn.GroupNorm(GROUPS, WIDTHS[0])]
        for before, width, stride in zip(WIDTHS, WIDTHS[1:], STRIDES[1:], strict=False):
            rest += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.ReLU(), nn.GroupNorm(GROUPS, width)]
        self.rest = nn.Sequential(*rest)

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, 128) features of (B, channels, H, W) images."""
        features: Tensor = self.rest(self.first(to_unit(images, self.first.weight.dtype)))
        return torch.mean(features, dim=(2, 3))


def create_mnist_cnn(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create convolutions of 64, 128 (stride 2), 128 and 128 channels, and a linear head on their 128 means.

    Source: Gulrajani and Lopez-Paz, "In search of lost domain generalization", ICLR 2021, appendix, the network for
    ColoredMNIST and RotatedMNIST. Weights are drawn as torch draws them.
    """
    del name, pretrained
    if len(input_shape) != 3:
        raise UsageError(f"mnist-cnn takes images (C, H, W), got examples of shape {input_shape}; choose --model mlp")
    return HeadedModel(MnistCnnFeaturizer(input_shape[0]), nn.Linear(WIDTHS[-1], outputs))
