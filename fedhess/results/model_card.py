"""The card of an exported model, in Markdown: what it is, its scores, its training data and how it was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhess.base.tables import markdown_table, short
from fedhess.domains.benchmark import TARGET
from fedhess.jobs.description import stand_in_warning
from fedhess.jobs.job import Job
from fedhess.models import MODELS, find_model
from fedhess.results.models import RunModel

USE = """\
```python
import torch, fedhess

model = fedhess.load("FOLDER")
inputs = torch.stack([model.transform("photo.jpg")])
print(dict(zip(model.classes, model.probabilities(inputs)[0].tolist())))
```

On the command line: `fedhess predict FOLDER photo.jpg`."""
USE_TENSORS = """\
```python
import torch, fedhess

model = fedhess.load("FOLDER")
inputs = torch.zeros(1, *model.input_shape)
print(dict(zip(model.classes, model.probabilities(inputs)[0].tolist())))
```"""
FRONT = """\
---
library_name: fedhess
tags: ["domain-generalization", "federated-learning", "flower"]
---"""
# The initial weights of a model, by the prefix of its name.
BEGINNINGS = {
    "lite": "the ImageNet weights of EfficientNet-Lite (Tan and Le 2019)",
    "resnet": "torchvision's ImageNet weights, version 1",
    "mlp": "random weights",
    "mnist-cnn": "random weights",
    "cnn": "random weights",
}


def model_card(job: Job, found: RunModel, config: Mapping[str, Any], *, onnx: bool) -> str:
    """Write the card."""
    run, settings, target = config["run"], found.run.config, found.run.scenario.name
    images = config["preprocessing"]["transform"] is not None
    parts = [
        FRONT,
        f"# {settings.model}, {found.run.strategy}: {job.data['title']} without {target}",
        *([f"> {warning}"] if (warning := stand_in_warning(job)) else []),
        f"A classifier of {len(job.classes)} classes ({', '.join(job.classes)}), trained by simulated federated domain "
        f"generalization on the domains {', '.join(settings.sources)}. It never saw {target} in training, nor was "
        f"anything of {target} used to choose it, and is evaluated there below.",
        "## Use",
        USE if images else USE_TENSORS,
        _files(config["model"], onnx=onnx),
        "## Inputs",
        _inputs(config),
        "## Scores",
        f"After round {found.server_round} of {settings.rounds}, chosen by {found.chosen_by}. This is one run, with "
        f"seed {settings.seed}: what a method reaches is a mean over seeds and targets, in the job's table.",
        _scores(config),
        "## Training",
        markdown_table(
            ["what", "value"],
            [
                ["strategy", found.run.strategy],
                ["its arguments", ", ".join(f"{k}={v}" for k, v in found.run.config.strategy_args.items()) or "none"],
                ["protocol", run["protocol"]],
                ["seed", str(settings.seed)],
            ],
            left=2,
        ),
        "Every setting is in config.json.",
        "## Data",
        _data(job),
        "## Licences and versions",
        _licences(job, config),
    ]
    return "\n\n".join(parts) + "\n"


def _files(model: str, *, onnx: bool) -> str:
    lines = [
        "- `model.safetensors`: every weight of the network, a frozen backbone included",
        "- `config.json`: how the network is built, classes, preprocessing, run, settings, scores, versions",
    ]
    if onnx:
        lines.append("- `model.onnx`: the same network for ONNX Runtime, `inputs` to `logits`, any batch size")
    if model not in MODELS:
        lines.append(f"\nThe network's code, `{find_model(model)}`, is not in the folder: install it too.")
    return "\n".join(lines)


def _inputs(config: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, config["input_shape"]))
    transform, inside = config["preprocessing"]["transform"], config["preprocessing"]["in_the_network"]
    if transform is None:
        return f"Tensors of {shape}, of the type that the benchmark's domains hold; uint8 is divided by 255."
    side = " x ".join(map(str, transform["size"]))
    text = f"RGB images, resized to {side} pixels (bilinear, proportions not kept), as uint8 of {shape}. The network"
    if inside["size"] is not None:
        text += f" resizes them to {' x '.join(map(str, inside['size']))},"
    if inside["mean"] is None:
        return f"{text} scales them."
    mean, std = (", ".join(f"{value:.4g}" for value in inside[key]) for key in ("mean", "std"))
    return f"{text} divides by 255 and normalises with mean ({mean}) and standard deviation ({std})."


def _scores(config: Mapping[str, Any]) -> str:
    lines = []
    for score in config["scores"]:
        accuracy = None if score["accuracy"] is None else 100 * score["accuracy"]
        role = "target, never trained on" if score["role"] == TARGET else score["role"]
        percent = "n/a" if accuracy is None else f"{accuracy:.1f}"
        lines.append([score["domain"], role, score["split"], str(score["examples"]), percent, short(score["loss"])])
    return markdown_table(["domain", "role", "split", "examples", "accuracy (%)", "loss"], lines, left=3)


def _data(job: Job) -> str:
    counts = {domain: sum(classes.values()) for domain, classes in job.data["counts"].items()}
    listed = ", ".join(f"{domain} {count:,}" for domain, count in counts.items() if count) or "not recorded"
    lines = [
        f"{job.data['title']}; examples by domain: {listed}.",
        *(f"Not complete: {each}." for each in job.differences),
    ]
    if job.data["digest"]:
        lines.append(f"sha256 over all examples: `{job.data['digest']}`")
    return "\n\n".join(lines)


def _licences(job: Job, config: Mapping[str, Any]) -> str:
    model, settings = config["model"], config["run"]["settings"]
    began = next((text for prefix, text in BEGINNINGS.items() if model.startswith(prefix)), f"the weights of {model}")
    if not settings["pretrained"] and not model.endswith("-features"):
        began = "random weights"
    if settings["weights"] is not None:
        began = f"the weights of the file {Path(settings['weights']).name}"
    of_data = f"of {job.data['title']}"
    if job.data["name"] == "IconPACS":
        of_data += " (NOTICE in the package fedhess.domains.iconpacs)"
    versions = ", ".join(f"{name} {version}" for name, version in config["exported_with"].items())
    return (
        f"Training began with {began}. What these weights may be used for depends on the licence of those weights and "
        f"on that {of_data}. fedhess itself is under the Apache License 2.0.\n\nExported with {versions}."
    )
