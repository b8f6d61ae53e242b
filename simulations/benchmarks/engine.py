"""The in-process engine: seconds a round with four clients, two exchanges, training and evaluation, tiny compute.

fedhess's own ServerApp and ClientApp run HGP on a model whose forward pass touches almost nothing but whose weights all
travel: what remains is the cost of the federation itself. The 45 MB model has the tensors of a ResNet-18.
"""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn

from fedhess.domains import BENCHMARKS, Benchmark
from fedhess.domains.benchmark import Scenario
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server.app import Server
from fedhess.federation.server.run_directory import Row
from fedhess.models import MODELS
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import RunConfig

WIDTH = 8
DOMAINS = ("one", "two", "three", "target")
# Name -> sizes of the tensors that travel. ResNet-18: 11.2 million weights, the largest tensor 9.4 MB.
BALLAST: dict[str, tuple[int, ...]] = {
    "ballast-1MB": (65_536,) * 4,
    "ballast-45MB": (9_408,) + (36_864,) * 4 + (147_456,) * 4 + (589_824,) * 4 + (2_359_296,) * 3 + (1_179_648,),
}
BARS_MS = {"ballast-1MB": 15.0, "ballast-45MB": 100.0}


class Ballast(nn.Module):
    """Features that are the inputs plus a sliver of each weight tensor."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(size) for size in sizes])

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the first few weights of each tensor to the inputs: (B, 8)."""
        return inputs + torch.stack([weight[:WIDTH] for weight in self.weights]).sum(0)


def create_ballast_1mb(*, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Make the 1 MB model."""
    del input_shape, pretrained
    return HeadedModel(Ballast(BALLAST["ballast-1MB"]), nn.Linear(WIDTH, outputs))


def create_ballast_45mb(*, input_shape: tuple[int, ...], outputs: int, pretrained: bool) -> HeadedModel:
    """Make the 45 MB model."""
    del input_shape, pretrained
    return HeadedModel(Ballast(BALLAST["ballast-45MB"]), nn.Linear(WIDTH, outputs))


def open_tiny(opening: Opening) -> Benchmark:
    """Open a benchmark of four domains with 32 random examples each."""
    del opening

    def load(domain: str) -> TensorDomain:
        generator = torch.Generator().manual_seed(DOMAINS.index(domain))
        return TensorDomain(domain, torch.randn(32, WIDTH, generator=generator), labels=torch.arange(32) % 4)

    return Benchmark(
        name="Tiny",
        domains=DOMAINS,
        classes=("a", "b", "c", "d"),
        input_shape=(WIDTH,),
        outputs=4,
        default_model="ballast-1MB",
        scenarios=(Scenario(DOMAINS[:3], DOMAINS[3:], "target"),),
        loader=load,
        holdout=0.0,
    )


def engine_rows(*, repeats: int) -> list[dict[str, Any]]:
    """Measure a round at both sizes.

    Args:
        repeats: Rounds behind each median; two more warm up.
    """
    BENCHMARKS["Tiny"] = f"{__name__}:open_tiny"
    MODELS["ballast-1MB"] = f"{__name__}:create_ballast_1mb"
    MODELS["ballast-45MB"] = f"{__name__}:create_ballast_45mb"
    rows = []
    for model, bar in BARS_MS.items():
        seconds = round_seconds(model, rounds=max(repeats, 5) * 3)
        ours = 1000 * statistics.median(seconds)
        rows.append(
            {
                "what": f"a round of HGP in process, 3 source clients and 1 target, {model} (ms)",
                "ours": ours,
                "other": bar,
                "ratio": ours / bar,
                "target": f"at most {bar:g} ms",
                "pass": ours <= bar,
            }
        )
    return rows


def round_seconds(model: str, *, rounds: int) -> list[float]:
    """Return the seconds of each round: two exchanges, training, averaging, evaluation."""
    config = RunConfig.checked(
        {
            "domains": "Tiny",
            "sources": DOMAINS[:3],
            "targets": DOMAINS[3:],
            "model": model,
            "strategy": "hgp",
            "rounds": rounds + 2,
            "local_steps": 1,
            "batch_size": 16,
            "lr": 0.01,
        }
    )
    marks: list[float] = []

    def mark(server_round: int, rows: list[Row]) -> None:
        del server_round, rows
        marks.append(time.perf_counter())

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server = Server(grid, RunConfig.from_run_config(context.run_config))
        server.on_round = mark
        server.run()

    run_in_process(
        server_app,
        client_app,
        run_config=config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": len(DOMAINS)} for index in range(len(DOMAINS))],
    )
    return [after - before for before, after in pairwise(marks[2:])]
