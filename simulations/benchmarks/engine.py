"""Time rounds of the in-process engine: four clients, two exchanges, training and evaluation, tiny compute.

HGP in its published form runs on a model whose forward pass costs almost nothing but whose weights are all sent. What
remains is the cost of the federation itself. The 45 MB model has the tensors of a ResNet-18.
"""

import statistics

import torch
from torch import Tensor, nn

from fedhess.domains import BENCHMARKS, Benchmark
from fedhess.domains.opening import Opening
from fedhess.models import MODELS
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import DOMAINS, Row, random_benchmark, row, run_federation

WIDTH = 8
# Sizes of the tensors that are sent. ResNet-18: 11.2 million weights, the largest tensor 9.4 MB.
SIZES = {
    "ballast-1MB": (65_536,) * 4,
    "ballast-45MB": (9_408,) + (36_864,) * 4 + (147_456,) * 4 + (589_824,) * 4 + (2_359_296,) * 3 + (1_179_648,),
}
BARS_MS = {"ballast-1MB": 15.0, "ballast-45MB": 100.0}
WARM_UP = 2


class Ballast(nn.Module):
    """Features that are the inputs plus a sliver of each weight tensor."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(size) for size in sizes])

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the first few weights of each tensor to the inputs: (B, 8)."""
        return inputs + torch.stack([weight[:WIDTH] for weight in self.weights]).sum(0)


def create_ballast(name: str, *, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Build a head behind tensors that are only sent; ``name`` is a key of `SIZES`."""
    del input_shape, pretrained
    return HeadedModel(Ballast(SIZES[name]), nn.Linear(WIDTH, outputs))


def open_tiny(opening: Opening) -> Benchmark:
    """Open a benchmark of four domains with 32 random vectors each."""
    del opening
    return random_benchmark(
        "Tiny",
        lambda count, generator: torch.randn(count, WIDTH, generator=generator),
        images=32,
        input_shape=(WIDTH,),
        default_model="ballast-1MB",
        holdout=0.0,
    )


def engine_rows(*, repeats: int) -> list[Row]:
    """Measure an evaluated round at both sizes; each median is of three times ``repeats`` rounds, at least 15."""
    BENCHMARKS["Tiny"] = f"{__name__}:open_tiny"
    MODELS.update(dict.fromkeys(SIZES, f"{__name__}:create_ballast"))
    rows = []
    for model, bar in BARS_MS.items():
        config = RunConfig.checked(
            {
                "domains": "Tiny",
                "sources": DOMAINS[:3],
                "targets": DOMAINS[3:],
                "model": model,
                "strategy": "hgp",
                "strategy_args": {"scale": "absolute"},
                "rounds": max(repeats, 5) * 3 + WARM_UP,
                "local_steps": 1,
                "batch_size": 16,
                "lr": 0.01,
            }
        )
        seconds = run_federation(config).evaluated_seconds(warm_up=WARM_UP)
        what = f"a round of HGP in process, 3 source clients and 1 target, {model} (ms)"
        rows.append(row(what, 1000 * statistics.median(seconds), at_most=bar, count=len(seconds)))
    return rows
