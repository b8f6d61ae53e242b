"""A round of each head strategy beside a round of ERM: seconds, bytes, and what measuring the distances costs.

Rounds of one local step, the case in which exchanges weigh most: the statistics, the references and the step share one
forward pass, and the model is sent once. ColoredMNIST with ``mlp`` is what the public scripts train (every example in
each step); ``resnet18`` at 96 pixels stands for fine-tuning, with random weights, since only its size matters here.
"""

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedhess.domains import open_benchmark
from fedhess.federation.client import app
from fedhess.federation.client.evaluation import Evaluation, evaluate_model
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server.app import Server
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.run_directory import Row
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig

HEAD_STRATEGIES = ("hgp", "hutchinson", "irm", "vrex", "fishr", "fediir", "server_alignment")
WARM_UP = 2  # rounds of each block that are left out
BYTES_RATIO, DISTANCES_SHARE = 1.05, 0.05
NO_ALIGNMENT = {name: torch.zeros(1, 1) for name in ("gradient", "hgp")}


@dataclass(frozen=True)
class Case:
    """A federation whose rounds are compared.

    Attributes:
        what: For the table.
        domains: A benchmark's name.
        sources: Its source domains here.
        target: Its target domain here.
        model: A model's name.
        bar: Most that a round may cost, in rounds of ERM.
    """

    what: str
    domains: str
    sources: tuple[str, ...]
    target: str
    model: str
    bar: float


CASES = (
    Case("ColoredMNIST, mlp, full batches", "ColoredMNIST", ("flip-0.2", "flip-0.1"), "flip-0.9", "mlp", 1.2),
    Case("IconPACS at 96 px, resnet18", "IconPACS", ("art_painting", "cartoon", "photo"), "sketch", "resnet18", 1.1),
)


@dataclass
class Block:
    """What some rounds of one strategy took.

    Attributes:
        seconds: Of each round's exchanges, training and averaging, without evaluation.
        marks: When each evaluated round had ended.
        bytes: That went up and down in all rounds, with one evaluation before and one after.
    """

    seconds: list[float] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)
    bytes: int = 0


class TimedServer(Server):
    """A server that notes how long each round's training took."""

    block: Block

    def _complete(self, server_round: int, outcome: RoundOutcome) -> None:
        if server_round > WARM_UP:
            self.block.seconds.append(outcome.seconds)
        super()._complete(server_round, outcome)


def round_rows(*, repeats: int) -> list[dict[str, Any]]:
    """Compare rounds on both federations.

    Args:
        repeats: Blocks of each strategy, taken in turn; a block has six rounds behind its median.

    Raises:
        UsageError: The data is not there.
    """
    rows: list[dict[str, Any]] = []
    for case in CASES:
        open_benchmark(case.domains)  # data that is not there is the user's to bring, and named before anything runs
    for case in CASES:
        blocks: dict[str, list[Block]] = {name: [] for name in ("erm", *HEAD_STRATEGIES)}
        for _ in range(min(repeats, 5)):
            for name, done in blocks.items():
                done.append(run_block(case, name, rounds=WARM_UP + 6, evaluate_every=WARM_UP + 6))
        for name in HEAD_STRATEGIES:
            rows += [_seconds_row(case, name, blocks), _bytes_row(case, name, blocks)]
        rows.append(_distances_row(case, repeats=min(repeats, 5)))
    return rows


def run_block(case: Case, strategy: str, *, rounds: int, evaluate_every: int, distances: bool = True) -> Block:
    """Run some rounds of one strategy in process and time them; without the distances, single zeros stand for them."""
    recipe = default_settings(case.model, benchmark=case.domains) | {"local_steps": 1, "pretrained": False}
    config = RunConfig.checked(
        recipe
        | {
            "domains": case.domains,
            "sources": case.sources,
            "targets": (case.target,),
            "model": case.model,
            "strategy": strategy,
            "strategy_args": default_strategy_args(strategy, model=case.model, benchmark=case.domains),
            "rounds": rounds,
            "evaluate_every": evaluate_every,
        }
    )
    if strategy == "fishr":
        config.strategy_args["anneal_steps"] = 0  # its penalty would begin after these rounds
    block = Block()

    def count(server_round: int, rows: list[Row]) -> None:
        del server_round
        block.marks.append(time.perf_counter())
        block.bytes += sum(row["bytes_up"] + row["bytes_down"] for row in rows)

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server = TimedServer(grid, RunConfig.from_run_config(context.run_config), on_round=count)
        server.block = block
        if not distances:
            server.alignment_shapes = NO_ALIGNMENT
        server.run()

    number = len(case.sources) + 1
    nodes = [{"partition-id": index, "num-partitions": number} for index in range(number)]
    with nullcontext() if distances else patch.object(app, "evaluate_model", _without_alignment):
        run_in_process(server_app, app.app, run_config=config.to_run_config(), node_configs=nodes)
    return block


def _seconds_row(case: Case, name: str, blocks: dict[str, list[Block]]) -> dict[str, Any]:
    ours, erm = ([statistics.median(block.seconds) for block in blocks[key]] for key in (name, "erm"))
    ratio = statistics.median(one / other for one, other in zip(ours, erm, strict=True))
    return {
        "what": f"{case.what}: a round of {name} against ERM's (ms)",
        "ours": 1000 * statistics.median(ours),
        "other": 1000 * statistics.median(erm),
        "ratio": ratio,
        "target": f"at most {case.bar:g}x",
        "pass": ratio <= case.bar,
    }


def _bytes_row(case: Case, name: str, blocks: dict[str, list[Block]]) -> dict[str, Any]:
    ours, erm = blocks[name][0].bytes, blocks["erm"][0].bytes
    return {
        "what": f"{case.what}: bytes of {name} against ERM's, up and down, {WARM_UP + 6} rounds (MB)",
        "ours": ours / 1e6,
        "other": erm / 1e6,
        "ratio": ours / erm,
        "target": f"at most {BYTES_RATIO:g}x",
        "pass": ours <= BYTES_RATIO * erm,
    }


def _distances_row(case: Case, *, repeats: int) -> dict[str, Any]:
    """Compare rounds of ERM, each evaluated, with and without the distances between the source domains."""
    measured: list[float] = []
    bare: list[float] = []
    for _ in range(repeats):
        measured.append(_evaluated_round_seconds(case, distances=True))
        bare.append(_evaluated_round_seconds(case, distances=False))
    ratio = statistics.median(one / other for one, other in zip(measured, bare, strict=True))
    return {
        "what": f"{case.what}: an evaluated round of ERM with the alignment distances against one without (ms)",
        "ours": 1000 * statistics.median(measured),
        "other": 1000 * statistics.median(bare),
        "ratio": ratio,
        "target": f"less than {1 + DISTANCES_SHARE:g}x",
        "pass": ratio < 1 + DISTANCES_SHARE,
    }


def _evaluated_round_seconds(case: Case, *, distances: bool) -> float:
    block = run_block(case, "erm", rounds=WARM_UP + 6, evaluate_every=1, distances=distances)
    return statistics.median(after - before for before, after in pairwise(block.marks[WARM_UP:]))


def _without_alignment(
    model: HeadedModel, data: LocalDomain, *, indices: Tensor | None = None, with_alignment: bool = False
) -> Evaluation:
    result = evaluate_model(model, data, indices=indices)
    if with_alignment:
        result.alignment = dict(NO_ALIGNMENT)
    return result
