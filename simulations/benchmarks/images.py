"""Time the image pipeline: against the usual DataLoader of PIL images, and in the rounds of a ResNet-18.

The images are IconPACS's, enlarged to the 227 pixels of PACS and saved as JPEG in PACS's own layout, so that real files
go through the real loader. The timed work is that of a client: read from the file of decoded images, augment, scale.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fedhess.alignment import step
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.client.batches import step_batches
from fedhess.federation.engines.inprocess import keep_freed_memory
from fedhess.models.headed import IMAGENET_MEAN, IMAGENET_STD, ScaleImages
from fedhess.models.prepared import local_domain
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import Row, in_turn, row, run_federation, seconds_of

FILE_SIDE, BATCH, WORKERS = 227, 32, 2
PASSES = 2  # over the domain in one repetition
SOURCES, TARGET = ("cartoon", "photo"), "sketch"
LOCAL_STEPS = 5
FASTER, SHARE = 3.0, 5.0  # times, percent


def image_rows(*, repeats: int) -> list[Row]:
    """Measure the pipeline alone, then inside training rounds on the CPU, at most three."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FEDHESS_CACHE=f"{folder}/cache"):
        root = Path(folder) / "PACS"
        write_tree(root)
        return [*pipeline_rows(root, repeats=repeats), share_row(root, rounds=min(repeats, 3))]


def write_tree(root: Path, *, every: int = 1) -> None:
    """Write IconPACS, or one image of EVERY, as JPEG files of 227 px in ROOT/DOMAIN/CLASS/: 1,680 in full."""
    icons = open_benchmark("IconPACS")
    for domain in icons.domains:
        data = icons.load(domain)
        chosen = torch.arange(0, len(data), every)
        for number, pixels in enumerate(data.inputs(chosen).permute(0, 2, 3, 1).numpy()):
            folder = root / domain / icons.classes[int(data.labels[chosen[number]])]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels).resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:04d}.jpg", quality=95)


def pipeline_rows(root: Path, *, repeats: int) -> list[Row]:
    """Measure images a second of reading and augmenting, ours and the usual in turn, and of decoding once."""
    config = image_settings(root, rounds=1)
    keep_freed_memory()  # as the in-process engine does
    started = time.perf_counter()
    data = local_domain(config, domain="photo", role=SOURCE)
    first = len(data.data) / (time.perf_counter() - started)
    scale, loader = ScaleImages(), _usual_loader(root / "photo")
    steps = range(PASSES * (data.train_size // BATCH))

    def ours() -> None:
        for inputs, _ in step_batches(data, config, steps=steps):
            scale(inputs)

    def usual() -> None:
        for _ in range(PASSES):
            for _ in loader:
                pass

    # The first call starts the workers and reads the files into memory.
    found = in_turn({"ours": partial(seconds_of, ours), "usual": partial(seconds_of, usual)}, repeats + 1)
    counts = {"ours": len(steps) * BATCH, "usual": PASSES * len(loader) * BATCH}
    mine, other = (counts[name] / statistics.median(seconds[1:]) for name, seconds in found.items())
    what = f"images/s, 224 px, domainbed augmentation, batches of {BATCH}"
    against = f"{what}, against DataLoader with {WORKERS} workers, PIL and torchvision"
    return [
        row(against, mine, other, at_least=FASTER, count=repeats),
        row("images/s, 227 px JPEG, checked and decoded into the cache, once", first),
    ]


def _usual_loader(folder: Path) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make the loader of most training scripts: DomainBed's transform of PIL images in worker processes."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )


def image_settings(root: Path, **given: Any) -> RunConfig:
    """Return the settings of a run of ERM on the tree: a ResNet without pretrained weights, which are a download."""
    return RunConfig.checked(
        {
            "domains": "PACS",
            "domains_options": open_benchmark("PACS", data_dir=root).options,
            "sources": SOURCES,
            "targets": (TARGET,),
            "model": "resnet18",
            "pretrained": False,
            "strategy": "erm",
            "evaluate_every": given.get("rounds", 1),
            "batch_size": BATCH,
            "local_steps": LOCAL_STEPS,
            "lr": 1e-4,
            "momentum": 0.9,
            "augment": "domainbed",
            "device": "cpu",
        }
        | given
    )


def share_row(root: Path, *, rounds: int) -> Row:
    """Measure the share of a round outside forward and backward passes, by a clock around these."""
    inside: list[float] = []
    with _clock_around(step, "run_forward", inside), _clock_around(torch.autograd, "backward", inside):
        seconds = run_federation(image_settings(root, rounds=rounds + 1)).seconds[1:]
    steps = LOCAL_STEPS * len(SOURCES)
    share = 100 * (1 - sum(inside[-2 * steps * rounds :]) / sum(seconds))
    what = f"ResNet-18, 224 px, batches of {BATCH}, {LOCAL_STEPS} local steps, {len(SOURCES)} clients, cpu"
    what += ": share of a round outside forward and backward (%)"
    return row(what, share, at_most=SHARE)


@contextlib.contextmanager
def _clock_around(module: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Record the seconds of every call of a module's function."""
    real = getattr(module, name)

    def timed(*args: Any, **given: Any) -> Any:
        started = time.perf_counter()
        result = real(*args, **given)
        seconds.append(time.perf_counter() - started)
        return result

    with patch.object(module, name, timed):
        yield
