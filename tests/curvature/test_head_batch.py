"""What a head batch accepts, refuses and remembers."""

import pytest
import torch
from head_cases import like_theta, make_head

from fedhess.curvature import HeadBatch, closed_form
from fedhess.curvature.distances import head_objective
from fedhess.curvature.remembering import Memory


def arguments(**changed):
    known = {
        "features": torch.zeros(4, 3),
        "labels": torch.tensor([0, 1, 1, 0]),
        "weight": torch.zeros(2, 3),
        "bias": torch.zeros(2),
    }
    return known | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": torch.zeros(4, 3, 1)}, r"features: .*\(B, D\).* got torch.float32 of shape \(4, 3, 1\); pass"),
        ({"features": torch.zeros(0, 3)}, r"features: .*B >= 1, got torch.float32 of shape \(0, 3\)"),
        ({"features": torch.zeros(4, 3).long()}, r"features: expected floating point .* got torch.int64"),
        ({"weight": torch.zeros(3, 2)}, r"weight: expected shape \(C, 3\) .* got \(3, 2\); .*transpose"),
        ({"weight": torch.zeros(2, 3).double()}, r"weight: expected torch.float32 on cpu .* got torch.float64"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \(2,\) .* got \(3,\); pass None"),
        ({"bias": torch.zeros(2).double()}, r"bias: expected torch.float32 on cpu .* got torch.float64"),
        ({"labels": torch.zeros(3).long()}, r"labels: expected int64 of shape \(4,\).*got torch.int64 of shape \(3,\)"),
        ({"labels": torch.zeros(4)}, r"labels: expected int64 .* got torch.float32 .*labels.long\(\)"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"labels: expected values from 0 to 1 .* got 0 to 2; check the class"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, r"labels: expected values from 0 to 1 .* got -1 to 1"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        HeadBatch(**arguments(**changed))


def test_logistic_head_takes_labels_0_and_1():
    batch = HeadBatch(**arguments(weight=torch.zeros(1, 3), bias=torch.zeros(1)))
    assert batch.is_logistic
    assert batch.basics.mean_residuals.flatten().tolist() == [0.125, -0.125, -0.125, 0.125]
    with pytest.raises(ValueError, match="from 0 to 1"):
        HeadBatch(**arguments(weight=torch.zeros(1, 3), bias=None, labels=torch.tensor([0, 1, 2, 0])))


@pytest.mark.parametrize("outputs", [1, 3])
def test_loss_is_torchs_own_bit_for_bit(outputs):
    head = make_head(5, 4, outputs)
    assert torch.equal(head.batch.loss, head.loss(head.theta))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("outputs", [3, 40])
def test_memory_ends_with_an_optimizer_step(optimizer, outputs):
    head = make_head(5, 4, outputs)
    layer = torch.nn.Linear(4, outputs).double()
    batch = HeadBatch(head.features, head.labels, layer.weight, layer.bias)
    steps = optimizer(layer.parameters(), lr=0.1)
    for _ in range(2):
        references = {"gradient": like_theta(head, 1), "hgp": like_theta(head, 2)}
        with torch.no_grad():
            closed_form.head_gradient(batch), closed_form.head_hvp(batch, references["gradient"])
        terms = head_objective(batch, **references)
        fresh = HeadBatch(head.features.detach().clone(), head.labels, layer.weight.clone(), layer.bias.clone())
        for mine, expected in zip(terms, head_objective(fresh, **references), strict=True):
            assert torch.equal(mine, expected)
        sum(terms).backward()
        steps.step()


def test_remembered_values_do_not_enter_a_graph_nor_leave_one():
    head = make_head(5, 4, 3)
    batch = head.batch
    with torch.no_grad():
        silent = closed_form.head_gradient(batch)
    recorded = closed_form.head_gradient(batch)
    assert not silent.requires_grad
    assert recorded.requires_grad
    with torch.no_grad():
        assert closed_form.head_gradient(batch) is silent


def test_a_remembered_value_that_was_written_into_is_computed_again():
    batch = make_head(5, 4, 3).batch
    with torch.no_grad():
        first = closed_form.head_gradient(batch)
        right = first.clone()
        first += 1
        assert torch.equal(closed_form.head_gradient(batch), right)


def test_projection_is_remembered_by_value_until_its_vector_is_written_into():
    head = make_head(5, 4, 3)
    batch = head.batch
    vector = like_theta(head)
    with torch.no_grad():
        first = batch.project(vector)
        assert batch.project(vector.clone()) is first
        assert batch.project(vector) is first
        assert not torch.equal(batch.project(vector + 1), first)
        again = batch.project(vector)
        vector += 1
        assert not torch.equal(batch.project(vector), again)


def test_inference_tensors_work_and_are_not_remembered():
    head = make_head(5, 4, 3)
    expected = closed_form.head_gradient(head.batch).detach()
    with torch.inference_mode():
        features, theta = head.features.clone(), head.theta.clone()
        batch = HeadBatch(features, head.labels, theta[:, :-1], theta[:, -1])
        assert torch.equal(closed_form.head_gradient(batch), expected)
        features += 1
        assert not torch.equal(closed_form.head_gradient(batch), expected)


def test_memory_does_not_confuse_an_argument_with_none():
    memory, source = Memory(), torch.ones(2)
    assert memory.recall("x", lambda: source + 1, (source,), None)[0] == 2
    assert memory.recall("x", lambda: source + 2, (source,), source)[0] == 3
