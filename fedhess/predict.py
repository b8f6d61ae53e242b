"""Classify images with an exported model: ``fedhess predict MODEL IMAGES...``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.settings.run_config import MAX_PIXELS, RunConfig

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

BATCH_SIZE = 64


@cli.command(cls=Command)
def predict(
    model: Annotated[Path, typer.Argument(help="Folder that fedhess export wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="Print so many classes of each image, the most probable first.")] = 1,
    max_pixels: Annotated[int, typer.Option(help=RunConfig.model_fields["max_pixels"].description, min=1)] = MAX_PIXELS,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every class's probability.")] = False,
) -> None:
    """Print the class and its probability for each image.

    A probability is the model's softmax: on a domain that it was not trained on it is often too high.
    """
    import torch

    from fedhess.base.environment import forbid_tf32, resolve_device
    from fedhess.base.tables import markdown_table
    from fedhess.domains.images.image_files import limit_pixels
    from fedhess.models.exported import load_exported

    if top < 1:
        raise UsageError(f"--top: expected at least 1, got {top}")
    limit_pixels(max_pixels)
    place = resolve_device(device)
    forbid_tf32()
    trained = load_exported(model, device=place)
    if trained.transform is None:
        raise UsageError(
            f"{model} takes tensors of {' x '.join(map(str, trained.input_shape))}, not image files; use it from "
            "Python: fedhess.load"
        )
    unreadable, rows = list[str](), list[tuple[Path, list[float]]]()
    for start in range(0, len(images), BATCH_SIZE):
        paths, pixels = list[Path](), list[torch.Tensor]()
        for path in images[start : start + BATCH_SIZE]:
            try:
                pixels.append(trained.transform(path))
                paths.append(path)
            except UsageError as error:
                unreadable.append(str(error))
        if paths:
            with torch.inference_mode():
                found = trained.probabilities(torch.stack(pixels).to(place)).cpu().tolist()
            rows += zip(paths, found, strict=True)
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "image": str(path),
                        "class": trained.classes[max(range(len(values)), key=values.__getitem__)],
                        "probabilities": dict(zip(trained.classes, values, strict=True)),
                    }
                    for path, values in rows
                ],
                indent=2,
            )
        )
    elif rows:
        lines = []
        for path, values in rows:
            best = sorted(range(len(values)), key=lambda index: -values[index])[:top]
            lines += [[str(path), trained.classes[index], f"{values[index]:.3f}"] for index in best]
        typer.echo(markdown_table(["image", "class", "probability"], lines, left=2))
    if unreadable:
        raise UsageError("\n".join([f"{len(unreadable)} of {len(images)} images cannot be read:", *unreadable]))


if __name__ == "__main__":
    sys.exit(run_command(cli))
