"""The image pipeline: against the usual DataLoader of PIL images, and beside a ResNet-18 that it feeds.

The images are IconPACS's, enlarged to the 227 pixels of PACS and saved as JPEG in PACS's own layout, so that real files
go through the real loader. What is timed is what a client does: read from the file of decoded images, augment, scale.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fedhess.alignment.step import run_forward
from fedhess.base.environment import resolve_device
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.client import memory, training
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.batches import step_batches
from fedhess.federation.engines.inprocess import keep_freed_memory, run_in_process
from fedhess.federation.server.app import Server
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.models.headed import IMAGENET_MEAN, IMAGENET_STD, ScaleImages
from fedhess.models.prepared import build_model, local_domain
from fedhess.settings.run_config import RunConfig

FILE_SIDE = 227
BATCH = 32
WORKERS = 2
PASSES = 2  # over the domain in one repetition
SOURCES, TARGET = ("cartoon", "photo"), "sketch"
LOCAL_STEPS = {"cpu": 5, "cuda": 50}
FASTER, SHARE, THROUGHPUT = 3.0, 5.0, 85.0


def image_rows(*, repeats: int) -> list[dict[str, Any]]:
    """Measure the pipeline alone, then inside training rounds.

    Args:
        repeats: Repetitions of the first; of the rounds, which take most of a minute each on a CPU, at most 3.
    """
    device = resolve_device("auto")
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FEDHESS_CACHE=f"{folder}/cache"):
        root = Path(folder) / "PACS"
        write_tree(root)
        rows = pipeline_rows(root, repeats=repeats)
        if device == "cpu":
            return [*rows, share_row(root, rounds=min(repeats, 3))]
        return rows + [throughput_row(root, device, precision, repeats=repeats) for precision in ("float32", "bf16")]


def write_tree(root: Path) -> None:
    """Write IconPACS as 1,680 JPEG files of 227 px in ROOT/DOMAIN/CLASS/."""
    icons = open_benchmark("IconPACS")
    for domain in icons.domains:
        data = icons.load(domain)
        for number, pixels in enumerate(data.inputs(torch.arange(len(data))).permute(0, 2, 3, 1).numpy()):
            folder = root / domain / icons.classes[int(data.labels[number])]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels).resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:04d}.jpg", quality=95)


def pipeline_rows(root: Path, *, repeats: int) -> list[dict[str, Any]]:
    """Measure images a second of reading and augmenting, ours and the usual, in turn; and of decoding once.

    Args:
        root: As `write_tree` made it.
        repeats: Repetitions.
    """
    config = settings(root, device="cpu")
    keep_freed_memory()  # as the in-process engine does
    started = time.perf_counter()
    data = local_domain(config, domain="photo", role=SOURCE)
    first = len(data.data) / (time.perf_counter() - started)
    scale = ScaleImages()
    steps = range(PASSES * (data.train_size // BATCH))

    def ours() -> int:
        return sum(len(scale(inputs)) for inputs, _ in step_batches(data, config, steps=steps))

    loader = usual_loader(root / "photo")

    def usual() -> int:
        return sum(len(inputs) for _ in range(PASSES) for inputs, _ in loader)

    speeds: dict[str, list[float]] = {"ours": [], "usual": []}
    for number in range(repeats + 1):
        for name, run in (("ours", ours), ("usual", usual)):
            started = time.perf_counter()
            count = run()
            if number:  # the first starts the workers and reads the files into memory
                speeds[name].append(count / (time.perf_counter() - started))
    mine, other = (statistics.median(speeds[name]) for name in ("ours", "usual"))
    what = f"images/s, 224 px, domainbed augmentation, batches of {BATCH}"
    return [
        {
            "what": f"{what}, against DataLoader with {WORKERS} workers, PIL and torchvision",
            "ours": mine,
            "other": other,
            "ratio": mine / other,
            "target": f"at least {FASTER:g}x",
            "pass": mine / other >= FASTER,
        },
        {"what": "images/s, 227 px JPEG, checked and decoded into the cache, once", "ours": first,
         "target": "for information", "pass": None},
    ]  # fmt: skip


def usual_loader(folder: Path) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make what most training scripts have: DomainBed's transform of PIL images in worker processes."""
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


def settings(root: Path, *, device: str, precision: str = "float32") -> RunConfig:
    """Give the settings of a run on the tree: ResNet-18 without its pretrained weights, which are a download."""
    return RunConfig.checked(
        {
            "domains": "PACS",
            "domains_options": open_benchmark("PACS", data_dir=root).options,
            "sources": SOURCES,
            "targets": (TARGET,),
            "model": "resnet18",
            "pretrained": False,
            "strategy": "erm",
            "batch_size": BATCH,
            "local_steps": LOCAL_STEPS[torch.device(device).type],
            "lr": 1e-4,
            "momentum": 0.9,
            "augment": "domainbed",
            "device": device,
            "precision": precision,
        }
    )


class TimedServer(Server):
    """A server that notes the seconds of each round's training."""

    def _train(self, server_round: int) -> RoundOutcome:
        started = time.perf_counter()
        outcome = super()._train(server_round)
        self.round_seconds = [*getattr(self, "round_seconds", []), time.perf_counter() - started]
        return outcome


def round_seconds(config: RunConfig, *, rounds: int) -> list[float]:
    """Run a federation without its evaluations and return the seconds of each round but the first."""
    seconds: list[float] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server = TimedServer(grid, RunConfig.from_run_config(context.run_config))
        server.run()
        seconds.extend(server.round_seconds)

    domains = (*config.sources, *config.targets)
    config = config.model_copy(update={"rounds": rounds + 1, "evaluate_every": rounds + 1})
    run_in_process(
        server_app,
        client_app,
        run_config=config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": len(domains)} for index in range(len(domains))],
    )
    return seconds[1:]


def share_row(root: Path, *, rounds: int) -> dict[str, Any]:
    """Measure the share of a round outside forward and backward passes, by a clock around these."""
    inside: list[float] = []
    with clock_around(training, "run_forward", inside), clock_around(torch.autograd, "backward", inside):
        seconds = round_seconds(settings(root, device="cpu"), rounds=rounds)
    steps = LOCAL_STEPS["cpu"] * len(SOURCES)
    passes = sum(inside[-2 * steps * rounds :])  # without the first round's
    share = 100 * (1 - passes / sum(seconds))
    what = f"ResNet-18, 224 px, batches of {BATCH}, {LOCAL_STEPS['cpu']} local steps, {len(SOURCES)} clients, cpu"
    return {
        "what": f"{what}: share of a round outside forward and backward (%)",
        "ours": share,
        "target": f"at most {SHARE:g} %",
        "pass": share <= SHARE,
    }


def throughput_row(root: Path, device: str, precision: str, *, repeats: int) -> dict[str, Any]:
    """Compare images a second of whole rounds with forward and backward alone on a batch that lies on the device."""
    config = settings(root, device=device, precision=precision)
    memory.MEMORY.clear()
    images = BATCH * config.local_steps * len(SOURCES)
    whole = images / statistics.median(round_seconds(config, rounds=repeats))
    alone = statistics.median(resident_throughput(config) for _ in range(repeats))
    ratio = 100 * whole / alone
    return {
        "what": f"ResNet-18, 224 px, batches of {BATCH}, {device}, {precision}: images/s of rounds, of passes alone",
        "ours": whole,
        "other": alone,
        "ratio": ratio / 100,
        "target": f"at least {THROUGHPUT:g} %",
        "pass": ratio >= THROUGHPUT,
    }


def resident_throughput(config: RunConfig) -> float:
    """Return images a second of forward and backward passes on one batch on the device."""
    model = build_model(config)
    data = local_domain(config, domain=SOURCES[0], role=SOURCE)
    [(inputs, labels)] = step_batches(data, config, steps=[0])
    for step in range(config.local_steps + 5):
        if step == 5:
            _wait(config.device)
            started = time.perf_counter()
        torch.autograd.backward(run_forward(model, inputs, labels).batch.loss)
        model.zero_grad(set_to_none=True)
    _wait(config.device)
    return config.local_steps * len(inputs) / (time.perf_counter() - started)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def clock_around(module: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Note the seconds of every call of a module's function."""
    real = getattr(module, name)

    def timed(*args: Any, **given: Any) -> Any:
        started = time.perf_counter()
        result = real(*args, **given)
        seconds.append(time.perf_counter() - started)
        return result

    with patch.object(module, name, timed):
        yield
