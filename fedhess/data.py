"""The data of benchmarks: ``python -m fedhess.data list | check NAME | prepare NAME``.

Show which data is available and where it is looked for, check that a copy is complete and intact, and download it.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.cli.options import DataDir, DomainsArgs, MaxPixels
from fedhess.domains import BENCHMARKS, find_benchmark, open_benchmark
from fedhess.domains.domain import Notify
from fedhess.domains.images.image_files import limit_pixels
from fedhess.domains.images.release import listed
from fedhess.domains.inspection import tables
from fedhess.domains.inspection.availability import availability_of
from fedhess.domains.inspection.check import inspect
from fedhess.domains.opening import Opening
from fedhess.jobs.progress import Progress
from fedhess.models import create_model, prepare_inputs, prepared_shape
from fedhess.settings.assignments import parse_assignments
from fedhess.settings.run_config import MAX_PIXELS

Name = Annotated[str, typer.Argument(help="A benchmark, as list names it, or folder:PATH.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]

ForModel = Annotated[
    str | None,
    typer.Option(help="Fetch this model's weights too, and decode or embed the images for it.", show_default=False),
]

cli = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List which data is here, check it, and fetch it.\n\nExit status: 0 when all is well, 1 when something is "
    "missing or wrong with the data, 2 for a wrong option. Downloads and derived files go to $FEDHESS_CACHE, else "
    "~/.cache/fedhess.",
)


@cli.command("list", cls=Command)
def list_benchmarks(data_dir: DataDir = None, as_json: AsJson = False) -> int:
    """List the benchmarks: what each is, whether its data is here, where it was looked for, how to get it."""
    entries = [_entry(name, data_dir) for name in BENCHMARKS]
    typer.echo(json.dumps(entries, indent=2) if as_json else tables.listing(entries))
    return 0


@cli.command(cls=Command)
def check(
    name: Name,
    data_dir: DataDir = None,
    domains_args: DomainsArgs = "",
    max_pixels: MaxPixels = MAX_PIXELS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Check a benchmark's data: what is missing, counts by domain and class, broken images, duplicates across domains.

    Every image is decoded once; the outcome is kept for the next check and the next run. Duplicates are files with the
    same bytes in two domains.
    """
    progress = Progress(silent=quiet or as_json)
    opening, key = _opening(name, data_dir, domains_args, max_pixels, notify=progress.note)
    found = inspect(name, key, opening)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else tables.inspection(found))
    return 0 if found.ok else 1


@cli.command(cls=Command)
def prepare(
    name: Name,
    data_dir: DataDir = None,
    domains_args: DomainsArgs = "",
    max_pixels: MaxPixels = MAX_PIXELS,
    model: ForModel = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Fetch a benchmark's data, or find it, and do what a first run would do, so that later runs need no network.

    An interrupted download continues with the file it stopped at; every file is checked by its checksum.
    """
    progress = Progress(silent=quiet or as_json)
    opening, key = _opening(name, data_dir, domains_args, max_pixels, notify=progress.note)
    availability = availability_of(key)
    if reason := availability.prepare(opening):
        sys.stderr.write(f"fedhess: {key} cannot be had: {reason}. {listed(availability.ways(opening))}\n")
        return 1
    benchmark = open_benchmark(
        name, data_dir=None if key == "folder:PATH" else data_dir, options=opening.options, notify=progress.note
    )
    examples = {}
    for domain in benchmark.domains:
        loaded = benchmark.load(domain)
        examples[domain] = len(loaded)
        if model is not None:
            prepare_inputs(model, loaded, notify=progress.tick)
    if model is not None:
        shape = prepared_shape(model, benchmark.input_shape)
        create_model(model, input_shape=shape, outputs=benchmark.outputs, seed=0)
    where = str(benchmark.options.get("data_dir") or availability.locate(opening) or "")
    ready = {"benchmark": benchmark.name, "where": where, "examples": examples, "model": model}
    typer.echo(json.dumps(ready, indent=2) if as_json else tables.readiness(ready, benchmark.default_model))
    return 0


def _entry(name: str, data_dir: Path | None) -> dict[str, Any]:
    """Return what ``list`` prints for one benchmark."""
    availability = availability_of(name)
    opening = Opening(benchmark=name, data_dir=None if name == "folder:PATH" else data_dir)
    try:
        where, problem = availability.locate(opening), ""
    except UsageError as error:
        where, problem = None, str(error)
    return {
        "name": name,
        "about": availability.about,
        "here": where is not None,
        "where": None if where is None else str(where),
        "problem": problem or None,
        "looked_in": [str(place) for place in availability.places(opening)],
        "ways": availability.ways(opening),
    }


def _opening(
    name: str, data_dir: Path | None, domains_args: str, max_pixels: int, *, notify: Notify
) -> tuple[Opening, str]:
    """Read a benchmark's name and options; return what to open and its key in ``BENCHMARKS``."""
    limit_pixels(max_pixels)
    key, path = find_benchmark(name)
    if path is not None and data_dir is not None:
        raise UsageError(f"{name} and --data-dir {data_dir}: expected one of the two; leave --data-dir out")
    options = parse_assignments(domains_args, option="--domains-args")
    opening = Opening(benchmark=key, name=name, data_dir=path or data_dir, options=options, notify=notify)
    return availability_of(key).settle(opening)[0], key


if __name__ == "__main__":
    sys.exit(run_command(cli))
