"""Measure what clients must reach on a GPU: ``python -m fedhess.simulations.timing --only gpu``, on one CUDA device.

The images are those of :mod:`fedhess.simulations.benchmarks.images`: IconPACS as 227-pixel JPEG files in PACS's layout,
so the cache of decoded images, the augmentation and the transfers are the real ones. The networks have random weights.
The same measurements run on a CPU at size :data:`SMALL`; this shows only that they run, and the figures mean nothing.
"""

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedhess.alignment.step import run_forward
from fedhess.base.environment import resolve_device
from fedhess.base.errors import UsageError
from fedhess.federation.client import app, memory, training
from fedhess.federation.client.batches import step_batches
from fedhess.federation.engines.choice import IN_PROCESS, choose_engine
from fedhess.federation.engines.ray import require_ray
from fedhess.federation.server.app import Server
from fedhess.models.building import build_model, check_compiler
from fedhess.models.headed import ScaleImages
from fedhess.models.prepared import local_domain
from fedhess.settings.defaults import default_strategy_args
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.images import SOURCES, image_settings, write_tree
from fedhess.simulations.benchmarks.measuring import Row, in_turn, row, run_federation, seconds_of

PASSES_SHARE, ROUND_RATIO, BYTES_RATIO = 0.85, 1.05, 1.01
# Bars relative to how far five rounds move the model: float64 rounding is far below, TF32 in float32 would be above.
CPU_DIFFERENCE = {"float64": 1e-8, "float32": 1e-2}
CLIENTS, COMPARED_ROUNDS = 4, 5
MEMORY_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Size:
    """How much is measured; a block has ``rounds`` rounds, after one that is left out."""

    models: tuple[str, ...] = ("resnet18", "resnet50")
    batch_size: int = 32
    local_steps: int = 20
    rounds: int = 3
    compiled: bool = True
    every: int = 1  # one image of so many is used


FULL = Size()
SMALL = Size(("resnet18",), batch_size=2, local_steps=2, rounds=1, compiled=False, every=12)


def gpu_rows(*, repeats: int) -> Iterator[Row]:
    """Measure everything at full size, blocks at most three times; missing requirements are named first."""
    if not torch.cuda.is_available():
        raise UsageError("--only gpu: torch sees no CUDA device; choose others")
    require_ray("--only gpu", instead="choose others")
    check_compiler("cuda")
    return measure(FULL, device="cuda", repeats=min(repeats, 3))


def measure(size: Size, *, device: str, repeats: int) -> Iterator[Row]:
    """Measure everything on a device, and yield row by row."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FEDHESS_CACHE=f"{folder}/cache"):
        root = Path(folder) / "PACS"
        write_tree(root, every=size.every)

        def settings(model: str, **given: Any) -> RunConfig:
            own = {"batch_size": size.batch_size, "local_steps": size.local_steps, "rounds": size.rounds + 1}
            return image_settings(root, **{"model": model, "device": device, **own, **given})

        first = size.models[0]
        yield from weights_rows(settings, first)
        yield bytes_row(settings(first, rounds=1))
        for model in size.models:
            yield from throughput_rows(settings, model, repeats=repeats, compiled=size.compiled)
            yield from strategy_rows(settings, model, repeats=repeats)
        yield from sharing_rows(settings, first)


def throughput_rows(settings: Callable[..., RunConfig], model: str, *, repeats: int, compiled: bool) -> list[Row]:
    """Compare images a second of rounds with passes alone, and of passes in other forms with plain passes."""
    rows = []
    for precision in ("float32", "bf16"):
        config = settings(model, precision=precision)
        memory.MEMORY.clear()
        images = config.batch_size * config.local_steps * len(SOURCES)
        seconds = run_federation(config).seconds[1:]
        whole = images / statistics.median(seconds)
        alone = statistics.median(passes_throughput(config) for _ in range(repeats))
        what = f"{_named(config)}, {precision}: images/s of rounds, of forward and backward alone"
        rows.append(row(what, whole, alone, at_least=PASSES_SHARE, count=len(seconds)))
    forms = {
        "plain": partial(passes_throughput, settings(model)),
        "bf16": partial(passes_throughput, settings(model, precision="bf16")),
        "channels first": partial(passes_throughput, settings(model), layout=torch.contiguous_format),
    }
    if compiled:
        forms |= {
            f"compiled, {precision}": partial(passes_throughput, settings(model, compile=True, precision=precision))
            for precision in ("float32", "bf16")
        }
    found = {form: statistics.median(several) for form, several in in_turn(forms, repeats).items()}
    plain = found.pop("plain")
    what = f"{_named(settings(model))}: images/s of forward and backward alone"
    beside = "beside float32"
    return rows + [row(f"{what}, {form}, {beside}", ours, plain, count=repeats) for form, ours in found.items()]


def passes_throughput(config: RunConfig, *, layout: torch.memory_format = torch.channels_last) -> float:
    """Return images a second of forward and backward passes on one batch that lies on the device."""
    model = build_model(config).to(memory_format=layout)
    for module in model.modules():
        if isinstance(module, ScaleImages):
            module.layout = layout
    data = local_domain(config, domain=SOURCES[0], role="source")
    [(inputs, labels)] = step_batches(data, config, steps=[0])
    inputs = inputs.contiguous(memory_format=layout)

    def passes(count: int) -> None:
        for _ in range(count):
            torch.autograd.backward(run_forward(model, inputs, labels).batch.loss)
            model.zero_grad(set_to_none=True)
        _synchronize(config)

    passes(5)
    return config.local_steps * len(inputs) / seconds_of(lambda: passes(config.local_steps))


def strategy_rows(settings: Callable[..., RunConfig], model: str, *, repeats: int) -> list[Row]:
    """Compare rounds of HGP and Hutchinson with rounds of ERM."""

    def seconds(strategy: str) -> float:
        args = default_strategy_args(strategy, model=model, benchmark="PACS")
        return statistics.median(run_federation(settings(model, strategy=strategy, strategy_args=args)).seconds[1:])

    found = in_turn({name: partial(seconds, name) for name in ("erm", "hgp", "hutchinson")}, repeats)
    erm, rows = found.pop("erm"), []
    for name, ours in found.items():
        ratio = statistics.median(one / other for one, other in zip(ours, erm, strict=True))
        what = f"{_named(settings(model))}: a round of {name} against ERM's (ms)"
        own, other = 1000 * statistics.median(ours), 1000 * statistics.median(erm)
        rows.append(row(what, own, other, ratio=ratio, at_most=ROUND_RATIO, count=len(ours)))
    return rows


class _Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the copies from the host to a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        copied = {torch.ops.aten._to_copy: 0, torch.ops.aten.copy_: 1}.get(func.overloadpacket)
        if copied is not None and args[copied].device.type == "cpu" and result.device.type != "cpu":
            self.bytes += args[copied].nbytes
        return result


def bytes_row(config: RunConfig) -> Row:
    """Compare the bytes that local training moves to the device with those of its batches."""
    copies, real = _Copies(), training.train_locally

    def counted(*args: Any, **given: Any) -> Any:
        with copies:  # in the client's own thread
            return real(*args, **given)

    with patch.object(app, "train_locally", counted):
        run_federation(config)
    data = local_domain(config, domain=SOURCES[0], role="source")
    first = data.train_indices[: config.batch_size]
    batch = data.data.inputs(first).nbytes + data.data.labels[first].nbytes
    moved = copies.bytes / (config.rounds * config.local_steps * len(SOURCES))
    what = f"{_named(config)}: MB moved to the device a step, of its batch (uint8 images and labels)"
    return row(what, moved / 1e6, batch / 1e6, at_most=BYTES_RATIO)


def sharing_rows(settings: Callable[..., RunConfig], model: str) -> list[Row]:
    """Measure rounds of four clients on one device: in this process, and on Ray with a quarter of the GPU each."""
    config = settings(model, partition="lambda", clients=CLIENTS)
    part = 1 / CLIENTS if config.device == "cuda" else None
    engines = {
        "in process": IN_PROCESS,
        "on Ray": choose_engine("ray", cpus_per_client=1, gpus_per_client=part, ray_address=None),
    }
    seconds, held = {}, {}
    for where, engine in engines.items():
        memory.MEMORY.clear()
        with device_memory() as used:
            seconds[where] = statistics.median(run_federation(config, engine=engine).seconds[1:])
        held[where] = max(used) / 1e6
    what = f"{_named(config)}, {CLIENTS} clients"
    beside = f"{what}: a round on Ray, beside one in process (s)"
    rows = [row(beside, seconds["on Ray"], seconds["in process"], count=config.rounds - 1)]
    if config.device == "cuda":
        each, together = held["on Ray"] / CLIENTS, held["in process"]
        beside = "memory of the GPU, a client on Ray with a CUDA context of its own, beside all in process without (MB)"
        rows.append(row(f"{what}: {beside}", each, together))
    return rows


@contextmanager
def device_memory() -> Iterator[list[int]]:
    """Sample the bytes of the CUDA device in use by any process, less those in use before."""
    if not torch.cuda.is_available():
        yield [0]
        return
    torch.cuda.empty_cache()
    before, used, ended = torch.cuda.mem_get_info()[0], [0], threading.Event()

    def watch() -> None:
        while not ended.wait(MEMORY_POLL_SECONDS):
            used.append(before - torch.cuda.mem_get_info()[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()


def weights_rows(settings: Callable[..., RunConfig], model: str) -> list[Row]:
    """Compare some rounds of HGP with the same on the CPU, and the weights of two deterministic runs."""
    args = default_strategy_args("hgp", model=model, benchmark="PACS")
    one = {"strategy": "hgp", "strategy_args": args, "rounds": COMPARED_ROUNDS, "local_steps": 1}
    what = f"{_named(settings(model))}, HGP, {COMPARED_ROUNDS} rounds of one step"
    rows = []
    for dtype, bar in CPU_DIFFERENCE.items():
        config = settings(model, **one, dtype=dtype, augment="none")  # its resampling is always float32
        start = {name: value.detach() for name, value in build_model(config).cpu().state_dict().items()}
        here, there = (final_weights(config.model_copy(update={"device": each})) for each in (config.device, "cpu"))
        apart = difference(start, here, there)
        rows.append(row(f"{what}, {dtype}: difference to the CPU's way, relative to its length", apart, at_most=bar))
    try:
        first, second = (final_weights(settings(model, **one, deterministic=True)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    same = statistics.mean(torch.equal(first[name], value) for name, value in second.items())
    return [
        *rows,
        row(f"{what}: share of tensors with equal bits in two runs with --deterministic", same, at_least=1.0),
    ]


def final_weights(config: RunConfig) -> dict[str, Tensor]:
    """Run a federation and return the global model's tensors at its end."""
    servers: list[Server] = []
    run_federation(config, prepare=servers.append)
    return dict(servers[0].model.tensors)


def difference(start: dict[str, Tensor], ours: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the distance between two models, relative to that of the second from their common start."""
    names = [name for name, value in start.items() if value.is_floating_point()]
    apart, moved = (
        torch.stack([(one[name].double() - two[name].double()).norm() for name in names]).norm()
        for one, two in ((ours, other), (other, start))
    )
    return float(apart / moved)


def _named(config: RunConfig) -> str:
    return f"{config.model}, 224 px, batches of {config.batch_size}, {config.device}"


def _synchronize(config: RunConfig) -> None:
    if torch.device(resolve_device(config.device)).type == "cuda":
        torch.cuda.synchronize(config.device)
