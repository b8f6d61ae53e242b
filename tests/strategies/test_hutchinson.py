"""Hutchinson's estimator: unbiased, exact where it can be, and the same probes for every domain."""

import pytest
import torch
from head_cases import make_head
from torch import Tensor

from fedhess.alignment.means import PerDomain
from fedhess.alignment.statistics import StatisticShapes
from fedhess.alignment.step import Step, run_forward
from fedhess.curvature import HeadBatch, closed_form
from fedhess.models.headed import HeadedModel
from fedhess.strategies.hutchinson import Hutchinson


def test_equal_seeds_give_equal_probes_to_every_domain_and_dtype():
    estimates = []
    for examples, dtype in ((3, torch.float64), (3, torch.float32), (9, torch.float64)):
        # Equal examples: the Hessian, and so the estimate from equal probes, is the same whatever their number.
        features = torch.tensor([[1.0, 2.0, 4.0]], dtype=dtype).repeat(examples, 1)
        batch = HeadBatch(features, torch.zeros(examples, dtype=torch.int64), torch.zeros(2, 3, dtype=dtype))
        generator = torch.Generator().manual_seed(4)
        estimates.append(closed_form.hutchinson_diagonal(batch, probes=5, generator=generator).double())
    torch.testing.assert_close(estimates[0], estimates[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimates[0], estimates[2])
    generator = torch.Generator().manual_seed(6)
    assert (closed_form.hutchinson_diagonal(batch, probes=5, generator=generator) - estimates[0]).abs().max() > 0.1


def test_a_new_seed_computes_no_shape_again() -> None:
    drawn: list[int] = []

    def probed(batch: HeadBatch, /, *, seed: int, probes: int) -> Tensor:
        drawn.append(seed)
        return batch.features.new_zeros(probes)

    shapes = StatisticShapes({"probed": probed}, HeadedModel(torch.nn.Identity(), torch.nn.Linear(3, 2)))
    for given in ({"seed": 1, "probes": 2}, {"seed": 2, "probes": 2, "other": 5}, {"seed": 3, "probes": 4}):
        assert shapes.of(["probed"], given)["probed"].shape == (given["probes"],)
    assert drawn == [1, 3]


@pytest.mark.parametrize("form", ["exact", "shared", "independent"])
def test_expected_penalty_is_what_the_docstring_says(form: str) -> None:
    probes, trials = 3, 400
    torch.manual_seed(0)
    model = HeadedModel(torch.nn.Identity(), torch.nn.Linear(3, 2).double())
    domains = [(torch.randn(5, 3).double() + shift, torch.randint(0, 2, (5,))) for shift in (0.0, 0.5, 1.5)]
    passes = [run_forward(model, *domain) for domain in domains]
    strategy = Hutchinson(
        alpha=1.0,
        beta=0.0,
        scale="absolute",
        probes=0 if form == "exact" else probes,
        independent=form == "independent",
    )

    class Ask:
        def __init__(self, trial: int) -> None:
            self.seed, self.server_round = trial, 1

        def several(self, name: str, **given: int) -> dict[str, PerDomain]:
            values = {str(index): strategy.statistics[name](made.batch, **given) for index, made in enumerate(passes)}
            return {name: PerDomain(values, dict.fromkeys(values, 1.0), dict.fromkeys(values, 1))}

    def penalties(trial: int) -> Tensor:
        reference = strategy.reference(Ask(trial))  # type: ignore[arg-type]
        steps = [Step(model, made, {}, trial, 1, key=(0, str(index), 0)) for index, made in enumerate(passes)]
        return torch.stack([strategy.penalty(step, reference) for step in steps])  # type: ignore[misc]

    with torch.no_grad():
        drawn = torch.stack([penalties(trial) for trial in range(trials)])
    hessians = torch.stack([full_hessian(model, *domain) for domain in domains])
    mean = hessians.mean(0)
    off = {"exact": 0 * hessians, "shared": hessians - mean, "independent": hessians}[form]
    expected = (hessians - mean).diagonal(dim1=1, dim2=2).square().sum(1) + off_diagonal(off) / probes
    if form == "independent":
        expected += off_diagonal(mean) / probes
    errors = drawn.std(0) / trials**0.5
    assert ((drawn.mean(0) - expected).abs() <= 4.5 * errors + 1e-12).all()


def full_hessian(model: HeadedModel, features: Tensor, labels: Tensor) -> Tensor:
    theta = torch.cat([model.head.weight.flatten(), model.head.bias]).detach()

    def loss(flat: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(features @ flat[:6].view(2, 3).T + flat[6:], labels)

    return torch.autograd.functional.hessian(loss, theta)


def off_diagonal(matrices: Tensor) -> Tensor:
    """Sum of the squared entries off the diagonal."""
    return matrices.square().sum((-2, -1)) - matrices.diagonal(dim1=-2, dim2=-1).square().sum(-1)


def test_independence_wants_probes() -> None:
    with pytest.raises(ValueError, match=r"independent=true: expected probes=N with N > 0 .*, got probes=0"):
        Hutchinson(independent=True)


@pytest.mark.parametrize("recording", [True, False])
def test_hutchinson_in_chunks_equals_one_chunk_and_moves_the_generator_on(monkeypatch, recording):
    head = make_head(4, 3, 2)
    results = []
    for elements in (10**6, 20):
        monkeypatch.setattr(closed_form, "PROBE_ELEMENTS", elements)
        generator = torch.Generator().manual_seed(0)
        with torch.set_grad_enabled(recording):
            estimate = closed_form.hutchinson_diagonal(head.batch, probes=7, generator=generator)
            again = closed_form.hutchinson_diagonal(head.batch, probes=7, generator=generator)
        assert not torch.equal(estimate, again)
        pulled = torch.autograd.grad(estimate.square().sum(), head.theta)[0] if recording else estimate
        results.append((estimate, again, pulled))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_hutchinson_keeps_a_byte_of_a_probe_for_backward():
    head = make_head(4, 30, 2)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        closed_form.hutchinson_diagonal(head.batch, probes=50, generator=torch.Generator().manual_seed(0))
    assert max(kept) == 50 * head.theta.numel()
