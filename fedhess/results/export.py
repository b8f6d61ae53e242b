"""Write a finished run's model to its own folder, which :func:`fedhess.load` and other tools read."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedhess.base.environment import describe_environment
from fedhess.base.errors import UsageError
from fedhess.base.files import replace_file, writing
from fedhess.domains import Benchmark, find_benchmark, open_benchmark
from fedhess.federation.server.run_directory import Row
from fedhess.jobs.description import whole_protocol
from fedhess.jobs.job import Job
from fedhess.jobs.rows import NOTHING, domain_rows
from fedhess.models import whole_network
from fedhess.models.exported import CONFIG_FILE, WEIGHTS_FILE, TrainedModel, load_exported
from fedhess.models.headed import HeadedModel, ScaleImages
from fedhess.results.model_card import model_card
from fedhess.results.models import SELECTED, RunModel, find_model

CARD_FILE, ONNX_FILE = "README.md", "model.onnx"
ONNX_TOLERANCE = 1e-3  # of logits, absolute and relative: another library's kernels round differently


def export_model(job: Job, *, out: Path | None = None, which: str = SELECTED, onnx: bool = False) -> Path:
    """Write the model of a job's one strategy, target and seed: weights, config, card, and ONNX if asked for."""
    if onnx and not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise UsageError("--onnx: it needs the extra onnx; install it with: pip install 'fedhess[onnx]'")
    found = find_model(job, which)
    folder = found.run.directory.path / "export" if out is None else out
    _require_free(folder)
    network = whole_network(found.run.config.model, found.load(device="cpu"))
    config = _config(job, found, network)
    tensors = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)  # written last: an export without it is incomplete
        (folder / ONNX_FILE).unlink(missing_ok=True)
        replace_file(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        replace_file(folder / CARD_FILE, model_card(job, found, config, onnx=onnx).encode())
        replace_file(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    if onnx:
        write_onnx(load_exported(folder), folder / ONNX_FILE)
    return folder


def _require_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out: expected a folder, and {folder} is a file; name another")
    others = sorted({path.name for path in folder.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, ONNX_FILE})
    if others:
        raise UsageError(
            f"--out: expected a new or empty folder or an earlier export, and {folder} holds {', '.join(others[:5])}; "
            "name another"
        )


def _config(job: Job, found: RunModel, network: HeadedModel) -> dict[str, Any]:
    """Collect what is needed to build the network, and what is known about its run, as JSON."""
    run, config = found.run, found.run.config
    benchmark = open_benchmark(
        config.domains, data_dir=config.data_dir, seed=config.seed, options=dict(config.domains_options), held=()
    )
    rows = [row for row in run.directory.rows() if row["round"] == found.server_round]
    described: dict[str, Any] = {
        "fedhess_export": 1,
        "model": config.model,
        "input_shape": list(benchmark.input_shape),
        "outputs": benchmark.outputs,
        "classes": job.classes,
        "dtype": config.dtype,
        "precision": config.precision,
        "preprocessing": _preprocessing(benchmark.input_shape, network, images=_takes_images(job, benchmark)),
        "run": {
            "strategy": run.strategy,
            "strategy_args": dict(config.strategy_args),
            "sources": list(config.sources),
            "targets": list(config.targets),
            "seed": config.seed,
            "round": found.server_round,
            "rounds": config.rounds,
            "round_chosen_by": found.chosen_by,
            "protocol": whole_protocol(job, [found.chosen_by]),
            "settings": config.model_dump(mode="json"),
        },
        "scores": _scores(rows),
        "dataset": dict(job.data),
        "trained_with": job.record.get("environment", {}),
        "exported_with": describe_environment()["versions"],
    }
    as_json: dict[str, Any] = json.loads(json.dumps(described))
    return as_json


def _takes_images(job: Job, benchmark: Benchmark) -> bool:
    """Whether examples are square RGB images of bytes; a user's arrays count only if their type was recorded."""
    channels, *sides = benchmark.input_shape
    arrays = find_benchmark(benchmark.name)[0] == "module:Class" and "image_side" not in benchmark.options
    return channels == 3 and len(sides) == 2 and sides[0] == sides[1] and bool(job.data.get("bytes", not arrays))


def _preprocessing(shape: Sequence[int], network: HeadedModel, *, images: bool) -> dict[str, Any]:
    """Describe the preprocessing of an example: by ``TrainedModel.transform``, then inside the network."""
    scaling = next((module for module in network.modules() if isinstance(module, ScaleImages)), None)
    return {
        "transform": {"mode": "RGB", "size": list(shape[1:]), "resize": "bilinear, proportions not kept"}
        if images
        else None,
        "in_the_network": {
            "uint8": "divided by 255",
            "size": None if scaling is None or scaling.size is None else list(scaling.size),
            "mean": None if scaling is None else scaling.mean.flatten().tolist(),
            "std": None if scaling is None else scaling.std.flatten().tolist(),
        },
    }


def _scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the scores of each domain and split in a round's rows, sources first; null if a client failed."""
    evaluated = [row for row in domain_rows(rows) if row["split"] != NOTHING]
    keys = ("domain", "role", "split", "examples", "accuracy", "loss")
    return [{key: row[key] for key in keys} for row in sorted(evaluated, key=lambda row: str(row["role"]))]


def write_onnx(model: TrainedModel, file: Path) -> None:
    """Write a network as ONNX, for batches of any size, and check that ONNX Runtime computes the same logits.

    Images are passed as uint8, other inputs as floats of the network's type; bf16 networks compute in float32 in ONNX.
    """
    import onnxruntime  # noqa: PLC0415 (an extra)

    model.network.autocast = None
    examples = example_inputs(model, 2)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model, (examples,), input_names=["inputs"], output_names=["logits"], dynamo=True,
        dynamic_shapes={"inputs": {0: batch}}, verbose=False,
    )  # fmt: skip
    assert program is not None
    with writing(file):
        program.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for size in (1, 5):
        inputs = example_inputs(model, size)
        with torch.inference_mode():
            expected = model(inputs)
        (got,) = session.run(None, {"inputs": inputs.numpy()})
        difference = (torch.from_numpy(got) - expected).abs()
        if not bool((difference <= ONNX_TOLERANCE * (1 + expected.abs())).all()):
            raise UsageError(
                f"--onnx: logits of ONNX Runtime differ from torch's by up to {float(difference.max()):.2g}, expected "
                f"at most {ONNX_TOLERANCE:g}; use {file.with_name(WEIGHTS_FILE)}"
            )


def example_inputs(model: TrainedModel, count: int) -> Tensor:
    """Draw noise with a fixed seed as inputs of a network."""
    generator, shape = torch.Generator().manual_seed(0), (count, *model.input_shape)
    if model.transform is not None:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.rand(shape, dtype=model.network.head.weight.dtype, generator=generator)
