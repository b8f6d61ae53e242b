"""Compare implementations of DomainBed's augmentation by CPU time: ``python tools/compare_augmentations.py``.

Contestants: `fedhess.federation.client.augmentation`, both of its ways; torchvision v2 on tensors, image by image;
torchvision on PIL images, image by image, as a DataLoader's worker does; and kornia, on whole batches, where it is
installed (it is no dependency). CPU time of one thread is given, which a busy machine disturbs least. ``--device cuda``
gives wall time.
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fedhess.domains import open_benchmark
from fedhess.federation.client.augmentation import apply_at_once, apply_one_by_one, draw

BATCH, SIDE = 32, 224


def pictures() -> Tensor:
    """Return 32 images of IconPACS at 224 px, (32, 3, 224, 224) uint8."""
    photo = open_benchmark("IconPACS").load("photo")
    small = photo.inputs(torch.arange(0, len(photo), len(photo) // BATCH)[:BATCH])
    return torch.nn.functional.interpolate(small.float(), (SIDE, SIDE), mode="bicubic").clamp(0, 255).to(torch.uint8)


def with_fedhess(apply: Callable[..., Tensor], images: Tensor) -> Callable[[], object]:
    """Draw parameters and apply them, in one of our two ways."""
    generator = torch.Generator().manual_seed(0)
    return lambda: apply(images, draw(len(images), size=(SIDE, SIDE), generator=generator))


def with_torchvision(kind: str, images: Tensor) -> Callable[[], object]:
    """Apply torchvision's transforms one image at a time: to PIL images, or to tensors of uint8 or float."""
    module = transforms if kind == "pil" else v2
    steps: list[object] = [
        module.RandomResizedCrop(SIDE, scale=(0.7, 1.0), antialias=True),
        module.RandomHorizontalFlip(),
        module.ColorJitter(0.3, 0.3, 0.3, 0.3),
        module.RandomGrayscale(0.1),
    ]
    if kind == "pil":
        pipeline = transforms.Compose([*steps, transforms.ToTensor()])
        given = [functional.to_pil_image(image.cpu()) for image in images]
        return lambda: [pipeline(image) for image in given]
    pipeline = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)] if kind == "uint8" else steps)
    if kind == "uint8":
        return lambda: [pipeline(image) for image in images]
    return lambda: [pipeline(image.float().div_(255)) for image in images]


def with_kornia(images: Tensor) -> Callable[[], object]:
    """Apply kornia's transforms to the batch; ``ColorJiggle`` is torchvision's ``ColorJitter``."""
    kornia = importlib.import_module("kornia.augmentation")
    pipeline = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((SIDE, SIDE), scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJiggle(0.3, 0.3, 0.3, 0.3, p=1.0),
        kornia.RandomGrayscale(p=0.1),
    )
    return lambda: pipeline(images.float().div_(255))


def measure(run: Callable[[], object], *, device: str, repeats: int) -> float:
    """Return the median microseconds an image."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    samples = []
    for _ in range(repeats + 1):
        started = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        samples.append(1e6 * (clock() - started) / BATCH)
    return statistics.median(samples[1:])


def main() -> None:
    """Print a line for every contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = pictures().to(arguments.device)
    contestants = {
        "fedhess, whole batch": with_fedhess(apply_at_once, images),
        "torchvision v2, float tensors": with_torchvision("float", images),
        "torchvision v2, uint8 tensors": with_torchvision("uint8", images),
        "torchvision, PIL": with_torchvision("pil", images),
    }
    if arguments.device == "cpu":
        contestants = {"fedhess, one by one": with_fedhess(apply_one_by_one, images), **contestants}
    if importlib.util.find_spec("kornia"):
        contestants["kornia, whole batch"] = with_kornia(images)
    for name, run in contestants.items():
        print(f"{name:32} {measure(run, device=arguments.device, repeats=arguments.repeats):8.0f} us an image")


if __name__ == "__main__":
    main()
