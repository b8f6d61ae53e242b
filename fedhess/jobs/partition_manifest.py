"""The partition of a run as a manifest: what each client holds by domain and class, and a digest that identifies it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.base.files import digest_of, replace_file, writing
from fedhess.base.tables import markdown_table
from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import count_classes
from fedhess.domains.partition import Examples, Share, read_examples, share_out
from fedhess.federation.protocol import Identity
from fedhess.jobs.job import Job
from fedhess.settings.run_config import RunConfig

FILE = "partition.json"
MOST_CLASSES = 12  # columns that a terminal has room for


def make_manifest(
    config: RunConfig, shares: Sequence[Share], examples: Mapping[str, Examples], *, classes: Sequence[str]
) -> dict[str, Any]:
    """Describe a partition as JSON: the number of training and held-out examples by client, domain and class.

    Classes without examples are left out; ``digest`` is from `partition_digest`.
    """
    return {
        "partition": config.partition,
        "clients": len(shares),
        "described": config.describe_clients() or "one client a domain",
        "sources": list(config.sources),
        "classes": list(classes),
        "seed": config.seed,
        "digest": partition_digest(shares),
        "held_by": [
            {
                "client": label(share),
                "domain": share.domain,
                "holds": {
                    domain: {
                        "train": _counts(examples[domain].labels[holding.train], classes),
                        "evaluate": _counts(examples[domain].labels[holding.evaluate], classes),
                    }
                    for domain, holding in share.holdings.items()
                },
            }
            for share in shares
        ],
    }


def show_partitions(job: Job, *, as_json: bool) -> str:
    """Render the partitions of a job's runs, without training: as JSON, a list of manifests, or as tables."""
    shown: dict[str, dict[str, Any]] = {}
    for run in job.runs:
        config, title = run.config, f"{job.data['title']}, target {run.scenario.name}, seed {run.config.seed}"
        if title in shown:
            continue  # strategies share it
        benchmark = open_benchmark(
            config.domains, data_dir=config.data_dir, seed=config.seed, options=config.domains_options
        )
        examples = read_examples(benchmark, config.sources, rule=config.split, seed=config.seed)
        shares = share_out(config.partition_settings, examples, seed=config.seed)
        shown[title] = make_manifest(config, shares, examples, classes=benchmark.classes)
    if as_json:
        return json.dumps([{"title": title, **manifest} for title, manifest in shown.items()], indent=2)
    return "\n\n".join(render_manifest(manifest, title=title) for title, manifest in shown.items())


def label(share: Share) -> str:
    """Name a client as messages do."""
    return Identity(share.domain, "", share.client, 0, 0, False).label


def partition_digest(shares: Sequence[Share]) -> str:
    """Return the sha256 over every client's name, and its domains with the indices of its examples."""
    parts: list[str | bytes] = []
    for share in shares:
        parts.append(label(share))
        for domain, holding in share.holdings.items():
            parts += [domain, holding.train.numpy().tobytes(), holding.evaluate.numpy().tobytes()]
    return digest_of(parts)


def render_manifest(manifest: Mapping[str, Any], *, title: str) -> str:
    """Render a partition as a table: one line for each client and domain, one column for each class."""
    lines = [
        (client["client"], domain, held["train"], held["evaluate"])
        for client in manifest["held_by"]
        for domain, held in client["holds"].items()
    ]
    classes = manifest["classes"] if len(manifest["classes"]) <= MOST_CLASSES else []
    heads = ["client", "domain", "train", "evaluate", *classes]
    rows = [
        [name, domain, str(sum(train.values())), str(sum(held.values())), *(str(train.get(c, 0)) for c in classes)]
        for name, domain, train, held in lines
    ]
    counted = "; by class: training examples" if classes else ""
    return "\n".join(
        [
            f"{title}: {manifest['described']}{counted}",
            f"digest {manifest['digest']}",
            "",
            markdown_table(heads, rows, left=2),
        ]
    )


def record_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write a run's partition into its directory, or check that it matches the one recorded there.

    Raises:
        UsageError: The run was begun with another partition (library versions may partition differently), or the
            recorded one is damaged.
        StorageError: The partition cannot be written.
    """
    file = directory / FILE
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
        if before != manifest["digest"]:
            raise UsageError(
                f"{file}: the run was begun with the partition of digest {before[:12]}, here it is "
                f"{manifest['digest'][:12]}; continue it with the versions of its config.json, or delete {directory}"
            )
        return
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(file, (json.dumps(manifest, indent=2) + "\n").encode())


def _counts(labels: Tensor, classes: Sequence[str]) -> dict[str, int]:
    return {name: count for name, count in count_classes(labels, classes).items() if count}
