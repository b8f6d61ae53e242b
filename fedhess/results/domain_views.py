"""Open a finished job again: its settings, its final models, and what the head of each sees of every domain.

This is analysis after training has ended, so a target domain may be read; before, nothing here opens a run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_generator
from fedhess.curvature import HeadBatch
from fedhess.domains import open_benchmark
from fedhess.federation.client.evaluation import BATCH_SIZE, predictions
from fedhess.federation.protocol import SOURCE, TARGET
from fedhess.jobs.plan import Job, PlannedRun, plan_job
from fedhess.jobs.variants import Variant
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain, build_model, local_domain

LEVELS = 4  # from a run's directory up to its job's: STRATEGY/VARIANT/TARGET/SEED


def open_finished(path: Path, *, data_dir: Path | None = None, device: str = "cpu") -> Job:
    """Open the finished runs in a directory: those of a whole job, or of one strategy, target or seed of it.

    The job is planned again from its config.json, as ``--resume`` would, and the data is compared with what it was.

    Args:
        path: ``runs/NAME``, or a directory in it down to a single run's.
        data_dir: Where the data is now, if it has moved.
        device: Where the models will run.

    Returns:
        The job with the runs that are in ``path``.

    Raises:
        UsageError: There is no job, it is damaged, its data is other than it was, or a run of it is not finished.
    """
    folder = _job_folder(path)
    recorded = read_config(folder / "config.json")
    job = _plan_again(folder, recorded, data_dir=data_dir, device=device)
    was, now = recorded["dataset"], job.description["dataset"]
    unknown = not was["digest"]  # of a deployed run, whose data stayed on its nodes
    if was["title"] != now["title"] or not (unknown or was["digest"] == now["digest"]):
        raise UsageError(
            f"{folder} was trained on other data: on {was['title']} with digest {was['digest'][:12]}, found "
            f"{now['title']} with {now['digest'][:12]}; name the folder of its data with --data-dir"
        )
    inside = path.resolve()
    runs = tuple(run for run in job.runs if run.directory.path.resolve().is_relative_to(inside))
    if not runs:
        raise UsageError(f"{path} is no run of the job in {folder}; expected {folder} or a directory of its runs")
    for run in runs:
        _require_finished(run)
    if len({run.variant for run in runs}) > 1:
        raise UsageError(
            f"{path} holds several settings of a strategy; name the directory of one, such as "
            f"{runs[0].directory.path.parent.parent}"
        )
    return replace(job, path=path, runs=runs)


def load_model(run: PlannedRun) -> HeadedModel:
    """Build a finished run's model with its final weights, in evaluation mode.

    Raises:
        UsageError: The checkpoint is absent, damaged, or of another model.
    """
    _require_finished(run)
    checkpoint = run.directory.load_checkpoint()
    assert checkpoint is not None, "a finished run has a checkpoint"
    model = build_model(run.config)
    stored = {name.partition("/")[2]: value for name, value in checkpoint.tensors.items() if name.startswith("model/")}
    wanted = model.state_dict()
    shapes, expected = ({name: value.shape for name, value in state.items()} for state in (stored, wanted))
    if shapes != expected:
        different = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise UsageError(
            f"{run.directory.path}: its checkpoint does not fit the model {run.config.model!r} and differs in: "
            f"{', '.join(different)}; open it with the version of fedhess that trained it"
        )
    model.load_state_dict(stored)
    return model.eval()


@dataclass(frozen=True)
class DomainView:
    """What a final model's head sees of one domain.

    Attributes:
        domain: Its name.
        role: Source or target of the run.
        split: Which of its examples these are, in words.
        accuracy: Fraction in [0, 1] that the model gets right.
        batch: Features, labels and head, in float64 on the CPU.
    """

    domain: str
    role: str
    split: str
    accuracy: float
    batch: HeadBatch


def view_domains(run: PlannedRun, *, most_examples: int) -> list[DomainView]:
    """Compute the features of every domain of a finished run under its final model: sources first, then targets.

    A source shows the split that it is evaluated on, a target everything (its in split where the run splits targets).
    Of a split with more than ``most_examples``
    examples as many are drawn without replacement, by (seed, domain) alone: every strategy gets the same.

    Args:
        run: A finished run.
        most_examples: Upper bound on the examples of a domain.

    Raises:
        UsageError: The run is not finished, or its checkpoint is damaged.
    """
    model = load_model(run)
    roles = dict.fromkeys(run.config.sources, SOURCE) | dict.fromkeys(run.config.targets, TARGET)
    return [_view(run, model, domain, role, most_examples) for domain, role in roles.items()]


@torch.no_grad()
def _view(run: PlannedRun, model: HeadedModel, domain: str, role: str, most: int) -> DomainView:
    data = local_domain(run.config, domain=domain, role=role)
    indices = data.evaluate_indices
    total = len(indices)
    if total > most:
        generator = seeded_generator(run.config.seed, "diagnosis", domain)
        indices = indices[torch.randperm(total, generator=generator)[:most].sort().values]
    features, labels = [], []
    for part in torch.split(indices, BATCH_SIZE):
        inputs, classes = data.batch(part)
        features.append(model.features(inputs).cpu().double())
        labels.append(classes.cpu())
    head = model.head
    bias = None if head.bias is None else head.bias.detach().cpu().double()
    batch = HeadBatch(torch.cat(features), torch.cat(labels), head.weight.detach().cpu().double(), bias)
    accuracy = float((predictions(batch.basics.logits) == batch.labels).double().mean())
    return DomainView(domain, role, _split_name(data, role, len(indices), total), accuracy, batch)


def _split_name(data: LocalDomain, role: str, count: int, total: int) -> str:
    whole = "in split" if len(data.out_indices) else "all"
    name = whole if role == TARGET else "held-out" if data.holds_out else "training"
    return f"{name} ({count})" if count == total else f"{name} ({count} of {total}, drawn)"


def _require_finished(run: PlannedRun) -> None:
    path, done = run.directory.path, run.directory.completed_round()
    if done is None:
        raise UsageError(f"{path} has no checkpoint, so there is no model to look at; train it with --resume first")
    if done < run.config.rounds:
        raise UsageError(
            f"{path} is at round {done} of {run.config.rounds}: its target may not be looked at before training has "
            "ended; finish it with --resume, or name a finished run's directory"
        )


def _job_folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"there is no directory {path}; expected one that fedhess.simulate wrote, such as runs/NAME")
    for folder in [path, *path.resolve().parents[:LEVELS]]:
        if (folder / "config.json").exists():
            return folder
    raise UsageError(f"{path} is no job's directory: there is no config.json in it or {LEVELS} levels above it")


def read_config(file: Path) -> dict[str, Any]:
    """Read a job's config.json.

    Raises:
        UsageError: It is damaged.
    """
    try:
        recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"dataset": dict, "strategies": dict, "targets": list, "seeds": list, "settings": dict}
        for key, kind in kinds.items():
            if not isinstance(recorded[key], kind) or not recorded[key]:
                raise ValueError(f"{key}: expected a {kind.__name__} with entries")
        for key in ("name", "title", "options", "digest"):
            recorded["dataset"][key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
    return recorded


def variants_of(recorded: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Return the settings that a recorded job has to select among, or none."""
    return tuple(variant["settings"] for variant in recorded.get("variants", ()))


def _plan_again(folder: Path, recorded: Mapping[str, Any], *, data_dir: Path | None, device: str) -> Job:
    dataset, settings = recorded["dataset"], dict(recorded["settings"]) | {"device": device}
    options = dict(dataset["options"])
    if data_dir is not None:
        if "data_dir" not in options:
            raise UsageError(f"--data-dir: {dataset['title']} reads no folder, got {data_dir}; leave the option out")
        options["data_dir"] = settings["data_dir"] = str(data_dir.resolve())
    if len(recorded["strategies"]) == 1:
        ((_, args),) = recorded["strategies"].items()
    else:
        args = {f"{name}.{key}": v for name, given in recorded["strategies"].items() for key, v in given.items()}
    try:
        return plan_job(
            open_benchmark(dataset["name"], options=options),
            strategies=list(recorded["strategies"]),
            strategy_args=args,
            target=",".join(recorded["targets"]),
            trials=len(recorded["seeds"]),
            overrides=settings | {"seed": min(recorded["seeds"])},
            out=folder,
            variants=variants_of(recorded),
        )
    except UsageError as error:
        raise UsageError(f"{folder} cannot be opened as it was trained: {error}") from error
