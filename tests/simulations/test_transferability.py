"""The transfer measure against losses with known answers, and the command on a small job."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import head_cases
import oracles
import pytest
import torch
from torch import Tensor

from fedhess.base import environment
from fedhess.cli.command import run_command
from fedhess.curvature import HeadBatch
from fedhess.domains import BENCHMARKS, open_benchmark
from fedhess.jobs.plan import plan_job
from fedhess.jobs.progress import Progress
from fedhess.simulations import transferability
from fedhess.simulations.transfer.ascent import ascend, transfer_curve
from fedhess.simulations.transfer.landscapes import DomainLandscape, Landscape, minimum_loss
from fedhess.simulations.transfer.report import render
from tests.conftest import TOY, Outcome

SHAPE = (2, 4)
MINIMUM = torch.arange(8, dtype=torch.float64).view(SHAPE)


@dataclass(frozen=True)
class QuadraticLandscape(Landscape):
    """The quadratic loss (theta - m)^T A (theta - m) / 2 + <slope, theta - m>, whose every derivative is known.

    ``hessian`` A is (CK, CK), ``minimum`` m (C, K): the minimum if the slope is zero and A is positive definite.
    """

    hessian: Tensor
    minimum: Tensor
    slope: Tensor | None = None

    def value_and_gradient(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients."""
        steps_RCK = heads - self.minimum
        curved_RCK = (steps_RCK.flatten(1) @ self.hessian).view_as(heads)
        slope_CK = torch.zeros_like(self.minimum) if self.slope is None else self.slope
        return (steps_RCK * (curved_RCK / 2 + slope_CK)).sum((1, 2)), curved_RCK + slope_CK

    def hvp(self, head: Tensor, vector: Tensor) -> Tensor:
        """Multiply A by a vector (C, K); the head does not matter."""
        del head
        return (self.hessian @ vector.flatten()).view_as(vector)


def symmetric(seed: int) -> Tensor:
    root = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(8, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_measure_of_quadratics_with_one_minimum_is_half_delta_squared_times_the_largest_eigenvalue(seed: int) -> None:
    a, b = symmetric(seed), symmetric(seed + 50)
    eigenvalues = torch.linalg.eigvalsh(b - a)
    for point in transfer_curve(
        QuadraticLandscape(a, MINIMUM), QuadraticLandscape(b, MINIMUM), MINIMUM, deltas=(0.01, 1.0, 30.0), seed=0
    ):
        known = point.delta**2 / 2 * eigenvalues.max().clamp_min(0).item()
        assert point.tilted == pytest.approx(known, rel=1e-6)
        assert point.actual == pytest.approx(known, rel=1e-6)
        assert point.bound == pytest.approx(point.delta**2 / 2 * eigenvalues.abs().max().item(), rel=1e-9)
        assert point.actual_bound == point.bound
        assert point.tilted <= point.bound * (1 + 1e-12)


def test_gradients_that_do_not_vanish_break_the_bound_and_keep_the_one_with_gradients() -> None:
    """The trust-region problem max <s,d> + d^T M d / 2 on |d| = delta, solved through its secular equation."""
    a, b = symmetric(1), symmetric(2)
    slope = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    source, target = QuadraticLandscape(a, MINIMUM), QuadraticLandscape(b, MINIMUM, slope)
    values, vectors = torch.linalg.eigh(b - a)
    parts = vectors.T @ slope.flatten()
    for point in transfer_curve(source, target, MINIMUM, deltas=(0.01, 0.1, 1.0, 10.0), seed=0):
        low, high = values.max().item(), values.max().item() + parts.norm().item() / point.delta
        for _ in range(200):
            middle = (low + high) / 2
            longer = (parts / (middle - values)).norm().item() > point.delta
            low, high = (middle, high) if longer else (low, middle)
        step = parts / (high - values)
        known = (parts @ step + step @ (values * step) / 2).item()
        assert point.actual == pytest.approx(known, rel=1e-5)
        assert point.actual <= point.actual_bound
        assert point.tilted == pytest.approx(point.delta**2 / 2 * values.max().item(), rel=1e-6)
        assert point.tilted <= point.bound
    (small,) = transfer_curve(source, target, MINIMUM, deltas=(0.01,), seed=0)
    assert small.actual > 10 * small.bound


def domain(seed: int, outputs: int, *, bias: bool, theta: Tensor) -> oracles.Head:
    head = head_cases.make_head(9, 4, outputs, bias, seed=seed)
    head.theta = theta.clone().requires_grad_()
    return head


@pytest.mark.parametrize(("outputs", "bias"), [(3, True), (3, False), (1, True)])
def test_domain_landscape_equals_autograd(outputs: int, bias: bool) -> None:
    theta = head_cases.make_head(1, 4, outputs, bias, seed=9).theta.detach()
    domains = [domain(seed, outputs, bias=bias, theta=theta) for seed in (1, 2)]
    landscape = DomainLandscape([detached(head) for head in domains])
    heads = torch.stack([theta, 2 * theta, theta - 1])
    values, gradients = landscape.value_and_gradient(heads)
    for number, point in enumerate(heads):
        leaf = point.clone().requires_grad_()
        loss = (domains[0].loss(leaf) + domains[1].loss(leaf)) / 2
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.testing.assert_close(values[number], loss.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[number], gradient.detach(), rtol=1e-10, atol=1e-12)
        vector = head_cases.like_theta(domains[0])
        (image,) = torch.autograd.grad(gradient, leaf, vector)
        torch.testing.assert_close(landscape.hvp(point, vector), image, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(landscape.gradient(point), gradient.detach(), rtol=1e-10, atol=1e-12)


def detached(head: oracles.Head) -> HeadBatch:
    theta = head.theta.detach()
    weight, bias = (theta[:, :-1], theta[:, -1]) if head.has_bias else (theta, None)
    return HeadBatch(head.features.detach(), head.labels, weight, bias)


def test_small_balls_of_cross_entropy_reach_the_bound_to_third_order() -> None:
    theta = head_cases.make_head(1, 4, 3, seed=9).theta.detach()
    source, target = (DomainLandscape([detached(domain(seed, 3, bias=True, theta=theta))]) for seed in (1, 2))
    dense = [oracles.dense_hessian(domain(seed, 3, bias=True, theta=theta)).detach() for seed in (1, 2)]
    eigenvalues = torch.linalg.eigvalsh(dense[1] - dense[0])
    known, norm = eigenvalues.max().item() / 2, eigenvalues.abs().max().item() / 2
    off = []
    for point in transfer_curve(source, target, theta, deltas=(1e-3, 1e-2), seed=0):
        assert point.bound == pytest.approx(point.delta**2 * norm, rel=1e-8)
        off.append(abs(point.tilted / point.delta**2 - known))
    assert off[0] < 1e-3 * known
    assert off[1] == pytest.approx(10 * off[0], rel=0.2)  # the error of a sum of order delta^3, over delta^2


def test_minimum_loss_finds_the_minimum_of_a_quadratic() -> None:
    assert minimum_loss(QuadraticLandscape(symmetric(1), MINIMUM), torch.zeros_like(MINIMUM)) < 1e-9


def test_ascent_depends_on_its_seed_alone_and_leaves_the_random_state() -> None:
    landscape = QuadraticLandscape(symmetric(1), MINIMUM)

    def objective(steps: Tensor) -> tuple[Tensor, Tensor]:
        return landscape.value_and_gradient(MINIMUM + steps)

    before = torch.random.get_rng_state()
    first, second = (ascend(objective, MINIMUM, delta=1.0, starts=[MINIMUM], seed=3) for _ in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert torch.equal(before, torch.random.get_rng_state())
    assert first[1].norm() <= 1 + 1e-12


def test_every_method_is_planned_for_every_target() -> None:
    full, quick = (transferability.plan(Path("unused"), quick=quick).runs for quick in (False, True))
    assert {run.config.strategy for run in full} == set(transferability.METHODS)
    assert {run.config.targets for run in full} == {("art_painting",), ("cartoon",), ("photo",), ("sketch",)}
    assert {run.config.targets for run in quick} == {("sketch",)}


def test_command_measures_a_finished_job(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "_git_revision", lambda: "abc")
    trained = command(*TOY, "--strategy", "erm,hgp", "--quiet", "--out", tmp_path / "job")
    monkeypatch.setattr(environment, "_git_revision", lambda: "def")
    assert trained.status == 0, trained.err
    out = tmp_path / "results" / "t.json"
    arguments = ["transferability", "--quick", "--job", str(tmp_path / "job"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_command(transferability.cli) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("## Transfer measure, Toy", "quick run: ", "3 source domains", "seeds 0"))
    assert all(f"\n{text}, torch " in said for text in ("trained at revision abc", "measured at revision def"))
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {run["strategy"] for run in result["runs"]} == {"erm", "hgp"}
    for run in result["runs"]:
        assert [point["delta"] for point in run["points"]] == list(transferability.QUICK_DELTAS)
        assert run["points"][0]["tilted"] == pytest.approx(run["points"][0]["bound"], rel=0.5)
        assert all(0 <= point["actual"] <= 1.05 * point["actual_bound"] for point in run["points"])
    assert out.with_suffix(".md").read_text(encoding="utf-8") == render(result) + "\n"
    assert out.with_suffix(".png").stat().st_size > 0


def test_targets_are_those_of_the_runs_that_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.setattr(transferability, "find_models", lambda *_: [])
    job = plan_job(
        open_benchmark("Toy", options={"free": True}), strategies=["erm"], strategy_args={}, target="east", trials=1,
        overrides={}, out=Path("unused"), selection="lodo",
    )  # fmt: skip
    assert len(job.runs) == 4, "three of them for cross-validation"
    assert transferability.measure_job(job, quick=True, progress=Progress(silent=True))["targets"] == ["east"]
