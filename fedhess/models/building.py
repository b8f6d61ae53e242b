"""Build the model of a run, with its weights, and set how it runs: precision, batch norms, compiled or not."""

import os

import torch

from fedhess.base.environment import forbid_tf32
from fedhess.base.errors import UsageError
from fedhess.models import create_model, prepared_shape
from fedhess.models.headed import BATCH_NORMS, FrozenNorms, HeadedModel
from fedhess.models.prepared import known_benchmark
from fedhess.models.weights import load_weights
from fedhess.settings.run_config import RunConfig


def build_model(config: RunConfig, *, initial: bool = True) -> HeadedModel:
    """Build the run's model in its dtype, on the run's device or this machine's replacement for it.

    A client needs no ``initial`` weights, since it receives all weights from the server.
    """
    benchmark = known_benchmark(config)
    model = create_model(
        config.model,
        input_shape=prepared_shape(config.model, benchmark.input_shape),
        outputs=benchmark.outputs,
        seed=config.seed,
        pretrained=initial and config.pretrained and config.weights is None,
    )
    if initial and config.weights is not None:
        load_weights(model, config)
    model = model.to(device=torch.device(config.device_here), dtype=config.torch_dtype)
    return set_execution(model, config)


def set_execution(model: HeadedModel, config: RunConfig) -> HeadedModel:
    """Apply the settings for execution to a model; names and values of its tensors do not change.

    ``deterministic`` is a switch of the process, and stays on once a run has set it.
    """
    forbid_tf32()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses every product on CUDA
        torch.use_deterministic_algorithms(True)
    model.autocast = torch.bfloat16 if config.precision == "bf16" else None
    if config.batchnorm == "averaged":
        if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
            raise UsageError(f"--batchnorm averaged: {config.model} has no batch norm; leave the option out")
        for module in model.modules():
            if isinstance(module, FrozenNorms):
                module.frozen = False
        model.train(model.training)
    if config.compile:
        model.featurizer.compile()
    return model


def check_execution(config: RunConfig, input_shape: tuple[int, ...]) -> None:
    """Raise UsageError unless settings fit each other, the device, and an example's shape as the model sees it."""
    device = config.device_here
    kind = torch.device(device).type
    if config.precision == "bf16":
        if config.dtype == "float64":
            raise UsageError("--precision bf16: it needs --dtype float32, got float64; choose one of the two")
        if kind not in ("cpu", "cuda"):
            raise UsageError(f"--precision bf16: expected --device cpu or cuda, got {device}")
        if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UsageError(f"--precision bf16: {device} computes no bfloat16; use --precision float32")
    if config.augment != "none" and (len(input_shape) != 3 or input_shape[0] != 3):
        raise UsageError(
            f"--augment {config.augment}: expected RGB images (3, H, W), and {config.model} gets examples of shape "
            f"{input_shape}; use --augment none"
        )
    if config.compile:
        check_compiler(device)


def check_compiler(device: str) -> None:
    """Compile a small function, so that a missing compiler is reported before anything runs."""
    try:
        torch.compile(lambda values: values * 2)(torch.ones(2, device=device))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UsageError(
            f"--compile: torch cannot compile here ({' '.join(lines[:2])[:200]}); install a C++ compiler (on a GPU "
            "also Triton), or leave the option out"
        ) from error
