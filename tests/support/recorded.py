"""Jobs with recorded rows, as a job's directory holds them, without having trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhess.federation.server.run_directory import Row
from fedhess.jobs.job import Job, make_job

DOMAINS = ("north", "south", "west", "east")
Accuracies = Mapping[tuple[str, str, int], Sequence[float | None]]  # of a target, by round, for strategy, target, seed


def record_job(
    path: Path,
    accuracies: Accuracies,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    rounds: int | None = None,
    counts: bool = True,
    **dataset: Any,
) -> Job:
    """Write config.json and rows, and make the job of them.

    Args:
        path: Of the job.
        accuracies: Those of the targets; sources improve with each round.
        classes: Names of the classes.
        rounds: Of every run; by default the last that is recorded of the first run.
        counts: Whether rows have counts of predictions.
        dataset: What is known of the data, beside the usual.
    """
    strategies, targets, seeds = (list(dict.fromkeys(key[place] for key in accuracies)) for place in range(3))
    settings = {"domains": "Toy", "model": "mlp", "batch_size": 16, "lr": 0.1, "local_steps": 1}
    record = {
        "dataset": {
            "name": "Toy", "title": "Toy", "stand_in_for": None, "classes": list(classes), "options": {}, "digest": "",
            "counts": {domain: {} for domain in DOMAINS},
        } | dataset,
        "strategies": {name: {} for name in strategies},
        "targets": targets, "seeds": seeds, "variants": [], "command": ["fedhess", "simulate", "--out", "a b"],
        "settings": settings | {"rounds": rounds or len(next(iter(accuracies.values()))) - 1},
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(record))
    job = make_job(path, record, inner=False)
    for run in job.runs:
        values = accuracies.get((run.strategy, run.scenario.name, run.config.seed), ())
        for number, accuracy in enumerate(values):
            rows = [_row(number, domain, "source", 0.4 + number / 100, None) for domain in run.scenario.sources]
            counted = len(classes) if counts else None
            run.directory.append([*rows, *(_row(number, d, "target", accuracy, counted) for d in run.scenario.targets)])
    return job


def _row(number: int, domain: str, role: str, accuracy: float | None, classes: int | None) -> Row:
    distance = 1.0 / (1 + number) if role == "source" else None
    row = {
        "round": number, "domain": domain, "client": 0, "role": role, "examples": 100, "loss": 1.0,
        "split": "validation" if role == "source" else "all", "accuracy": accuracy, "gradient_distance": distance,
        "hgp_distance": distance, "failures": [], "bytes_down": 2_000_000, "bytes_up": 1_000_000,
        "sent": {"up": {"evaluate metrics": [1, 48, "3 values"]}},
    }  # fmt: skip
    if classes is not None and accuracy is not None:
        right = round(100 * accuracy)
        row["confusion"] = [[0, 0, right], [0, 1, 100 - right], *([label, label, 1] for label in range(1, classes))]
        row["calibration"] = [[0, 0, 0.0]] * 14 + [[100, right, 98.0]]
    return row
