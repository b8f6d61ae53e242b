"""The server keeps the model of the round that tables will report."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Finished
from rows import source, target

from fedhess.federation.server.round_selection import BestSoFar, select_round
from fedhess.federation.server.run_directory import Row, RunDirectory


def drawn_rounds(draw: random.Random, *, split: str, missing: float) -> list[list[Row]]:
    """Rounds of two sources, one of them with two clients, and a target; some answers are missing."""
    clients = [("a", 0), ("a", 1), ("b", 0)]

    def value() -> float | None:
        return None if draw.random() < missing else draw.choice([0.25, 0.5, 0.75])

    return [
        [source(n, name, value(), draw.choice([1.0, 2.0]), client=c, split=split) for name, c in clients]
        + [target(n, draw.random())]
        for n in range(12)
    ]


@pytest.mark.parametrize("missing", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("split", ["validation", "train"])
def test_best_so_far_is_what_the_rule_selects_among_all_rounds_so_far(split: str, missing: float) -> None:
    for seed in range(40):
        draw = random.Random(seed)
        quorum, begun = draw.choice([0, 1, 2]), draw.randrange(12)
        rounds = drawn_rounds(draw, split=split, missing=missing)
        best = BestSoFar(quorum=quorum, rows=[row for group in rounds[:begun] for row in group])
        for number, group in enumerate(rounds[begun:], start=begun):
            so_far = [row for each in rounds[: number + 1] for row in each]
            assert best.add(group) == (select_round(so_far, quorum=quorum) == number), (seed, number)


def test_loss_that_is_not_finite_is_the_worst_before_it_is_written_too() -> None:
    for loss in (float("nan"), float("inf"), None):
        best = BestSoFar()
        assert best.add([source(1, "a", 0.5, loss)])
        assert best.add([source(2, "a", 0.5, 9.0)])
        assert not best.add([source(3, "a", 0.5, loss)])


def test_kept_model_is_the_selected_rounds(toy_run: Callable[..., Finished], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 8, "lr": 1.5, "domains_options": {"holdout": 0.25}}
    run = toy_run(directory=tmp_path / "run", **settings)
    directory = RunDirectory(tmp_path / "run")
    chosen = select_round(run.rows)
    assert chosen == directory.selected_round()
    assert chosen is not None
    assert 1 < chosen < 8, "else the first or last round would do"
    expected = toy_run(**settings | {"rounds": chosen})
    kept = directory.load_selected()
    assert kept.keys() == expected.tensors.keys()
    assert all(torch.equal(kept[name], value) for name, value in expected.tensors.items())
