"""A benchmark of small pictures and a small convolutional network for tests."""

from typing import Any

import torch
from torch import Tensor, nn
from toy import DOMAINS, SOURCES, TARGET

from fedhess.domains import Benchmark
from fedhess.domains.benchmark import Scenario
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.models.headed import FrozenNorms, HeadedModel, ScaleImages
from fedhess.settings.run_config import RunConfig

SIDE = 12


def open_pictures(opening: Opening) -> Benchmark:
    """Four domains of 24 noisy pictures, each with its own colours, four classes of brightness."""
    opening.read_options()

    def load(domain: str) -> TensorDomain:
        generator = torch.Generator().manual_seed(DOMAINS.index(domain))
        labels = torch.arange(24) % 4
        colours = torch.randint(40, 160, (1, 3, 1, 1), generator=generator)
        noise = torch.randint(0, 40, (24, 3, SIDE, SIDE), generator=generator)
        pictures = colours + noise + 18 * labels.view(-1, 1, 1, 1)
        return TensorDomain(domain, pictures.to(torch.uint8), labels=labels)

    return Benchmark(
        name="Pictures",
        domains=DOMAINS,
        classes=("a", "b", "c", "d"),
        input_shape=(3, SIDE, SIDE),
        outputs=4,
        default_model="tiny",
        scenarios=(Scenario(SOURCES, (TARGET,), TARGET),),
        loader=load,
        holdout=0.0,
    )


class Tiny(FrozenNorms):
    """Scale, convolve, normalise, average."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = ScaleImages()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(self.scale(images))).relu().mean((2, 3))


def create_tiny(name: str = "", *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    return HeadedModel(Tiny(), nn.Linear(5, outputs))


def pictures_config(**changes: Any) -> RunConfig:
    """Settings of a small run: float32, one local step, three rounds, augmented."""
    settings: dict[str, Any] = {
        "domains": "Pictures",
        "sources": SOURCES,
        "targets": (TARGET,),
        "model": "tiny",
        "strategy": "erm",
        "rounds": 3,
        "local_steps": 1,
        "batch_size": 8,
        "lr": 0.1,
        "augment": "domainbed",
    }
    return RunConfig.checked(settings | changes)
