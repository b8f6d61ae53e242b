"""ResNet-18 and ResNet-50 with torchvision's ImageNet weights."""

import os
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from torch import Tensor, nn

from fedhess.base.errors import UsageError
from fedhess.domains.download import why_no_answer
from fedhess.models.headed import FrozenNorms, HeadedModel, ScaleImages, require_images

# Version 1 is what DomainBed trains from.
WEIGHTS = {"resnet18": "ResNet18_Weights.IMAGENET1K_V1", "resnet50": "ResNet50_Weights.IMAGENET1K_V1"}


class ResNetFeaturizer(FrozenNorms):
    """A torchvision ResNet up to its average pool: D = 512 (18) or 2048 (50). Batch norms are frozen."""

    def __init__(self, network: torchvision.models.ResNet) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.scale = ScaleImages()
        self.network = network
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, D) features of (B, 3, H, W) images."""
        features: Tensor = self.network(self.scale(images))
        return features


def create_resnet(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Create a ResNet-18 or 50 with a linear head (D = 512 or 2048)."""
    require_images(name, input_shape)
    network = getattr(torchvision.models, name)(weights=None)
    if pretrained:
        network.load_state_dict(_weights(name))
    width = network.fc.in_features
    return HeadedModel(ResNetFeaturizer(network), nn.Linear(width, outputs), head_name="fc")


def _weights(name: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_weight(WEIGHTS[name])
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    reason = "" if file.exists() else why_no_answer([weights.url])
    if not reason:
        try:
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
            return state
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # a wrong hash, or a file cut short
            reason = f"{file}: {error}"
    raise UsageError(
        f"{name} needs its ImageNet weights and they cannot be loaded ({reason}). "
        f"Put the file {file.name} (from {weights.url}) at {file}, "
        "name it with --weights, or choose --model lite0 or lite0-features, whose weights are installed with the "
        "package"
    )
