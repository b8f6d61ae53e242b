"""FedSR where numbers are extreme; its objective and gradients are compared in tests/promises/test_exact.py."""

import pytest
import torch
from toy import toy_config

from fedhess.alignment.loading import strategy_model
from fedhess.alignment.step import Step, run_forward
from fedhess.domains import BENCHMARKS
from fedhess.strategies.fedsr import FedSR


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 4])
def test_a_spread_that_underflows_has_a_finite_objective_and_gradient(
    dtype: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    model = strategy_model(toy_config(strategy="fedsr", domains_options={"classes": classes}, dtype=dtype))
    bias = model.get_parameter("auxiliary.spread.bias")
    with torch.no_grad():
        bias.fill_(-1000.0)
    forward = run_forward(model, torch.ones(4, 12, dtype=bias.dtype), torch.tensor([0, 1, 1, 0]))
    objective = FedSR().objective(Step(model, forward, {}, 0, 1, key=(0, "north", 0)), {})
    objective.backward()  # type: ignore[no-untyped-call]
    assert objective.dtype == bias.dtype
    assert objective.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
