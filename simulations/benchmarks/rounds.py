"""Compare a round of each head strategy with a round of ERM: seconds, bytes, and the cost of measuring the distances.

Rounds have one local step, the case in which exchanges weigh most: the statistics, the references and the step share
one forward pass, and the model is sent once. ColoredMNIST with ``mlp`` is what the public scripts train (every example
in each step); ``resnet18`` at 96 pixels stands for fine-tuning, with random weights, since only its size matters here.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from fedhess.domains import open_benchmark
from fedhess.federation.client import app
from fedhess.federation.client.evaluation import Evaluation, evaluate_model
from fedhess.federation.server.app import Server
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain
from fedhess.settings.defaults import default_settings, default_strategy_args
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import Rounds, Row, in_turn, row, run_federation

HEAD_STRATEGIES = ("hgp", "hutchinson", "irm", "vrex", "fishr", "fediir", "server_alignment")
WARM_UP, ROUNDS = 2, 8  # rounds of each block that are left out, and all of them
BYTES_RATIO, DISTANCES_RATIO = 1.05, 1.05


@dataclass(frozen=True)
class Case:
    """A federation whose rounds are compared; ``bar`` is the most that a round may cost, in rounds of ERM."""

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


def round_rows(*, repeats: int) -> list[Row]:
    """Compare rounds on both federations, in at most five blocks of each strategy."""
    for case in CASES:
        open_benchmark(case.domains)  # missing data is named before anything runs
    rows: list[Row] = []
    for case in CASES:
        blocks = in_turn({name: partial(run_block, case, name) for name in ("erm", *HEAD_STRATEGIES)}, min(repeats, 5))
        for name in HEAD_STRATEGIES:
            rows += _strategy_rows(case, name, blocks[name], blocks["erm"])
        rows.append(_distances_row(case, repeats=min(repeats, 5)))
    return rows


def run_block(case: Case, strategy: str, *, evaluate_every: int = ROUNDS, distances: bool = True) -> Rounds:
    """Run some rounds of one strategy in process; without ``distances``, a column of zeros replaces them."""
    args = default_strategy_args(strategy, model=case.model, benchmark=case.domains)
    config = RunConfig.checked(
        default_settings(case.model, benchmark=case.domains)
        | {
            "local_steps": 1,
            "pretrained": False,
            "domains": case.domains,
            "sources": case.sources,
            "targets": (case.target,),
            "model": case.model,
            "strategy": strategy,
            # Fishr's penalty would begin after these rounds.
            "strategy_args": args | ({"anneal_steps": 0} if strategy == "fishr" else {}),
            "rounds": ROUNDS,
            "evaluate_every": evaluate_every,
        }
    )
    if distances:
        return run_federation(config)

    def ask_nothing(server: Server) -> None:
        server.alignment_shapes = {name: each[:, :1] for name, each in server.alignment_shapes.items()}

    with patch.object(app, "evaluate_model", _without_alignment):
        return run_federation(config, prepare=ask_nothing)


def _without_alignment(
    model: HeadedModel, data: LocalDomain, *, indices: Tensor | None = None, with_alignment: bool = False
) -> Evaluation:
    result = evaluate_model(model, data, indices=indices)
    nothing = torch.zeros(model.head.out_features, 1)
    result.alignment = dict.fromkeys(("gradient", "hgp"), nothing) if with_alignment else {}
    return result


def _strategy_rows(case: Case, name: str, blocks: Sequence[Rounds], erm_blocks: Sequence[Rounds]) -> list[Row]:
    ours, erm = ([statistics.median(block.seconds[WARM_UP:]) for block in of] for of in (blocks, erm_blocks))
    what = f"{case.what}: bytes of {name} against ERM's, up and down, {ROUNDS} rounds (MB)"
    return [
        _paired_row(f"{case.what}: a round of {name} against ERM's (ms)", ours, erm, at_most=case.bar),
        row(what, blocks[0].bytes / 1e6, erm_blocks[0].bytes / 1e6, at_most=BYTES_RATIO),
    ]


def _distances_row(case: Case, *, repeats: int) -> Row:
    """Compare rounds of ERM, each evaluated, with and without the distances between the source domains."""

    def seconds(*, distances: bool) -> float:
        block = run_block(case, "erm", evaluate_every=1, distances=distances)
        return statistics.median(block.evaluated_seconds(warm_up=WARM_UP))

    found = in_turn({"measured": partial(seconds, distances=True), "bare": partial(seconds, distances=False)}, repeats)
    what = f"{case.what}: an evaluated round of ERM with the alignment distances against one without (ms)"
    return _paired_row(what, found["measured"], found["bare"], at_most=DISTANCES_RATIO)


def _paired_row(what: str, ours: Sequence[float], other: Sequence[float], *, at_most: float) -> Row:
    """Compare medians of seconds by the median ratio of the pairs."""
    ratio = statistics.median(one / another for one, another in zip(ours, other, strict=True))
    own, others = 1000 * statistics.median(ours), 1000 * statistics.median(other)
    return row(what, own, others, ratio=ratio, at_most=at_most, count=len(ours))
