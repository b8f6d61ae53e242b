"""What a head batch accepts, refuses and remembers."""

import pytest
import torch
from head_cases import like_theta, make_head

from fedhess.curvature import HeadBatch, head_gradient, head_hvp, head_objective


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
        ({"features": torch.zeros(4, 3, 1)}, r"expected features \(B, D\).* got features \(4, 3, 1\) torch.float32"),
        ({"features": torch.zeros(0, 3), "labels": torch.zeros(0).long()}, r"B >= 1.* got features \(0, 3\)"),
        ({"features": torch.zeros(4, 3).long()}, r"one floating-point dtype.* got features \(4, 3\) torch.int64"),
        ({"weight": torch.zeros(3, 2)}, r"weight \(C, D\).* weight \(3, 2\)"),
        ({"bias": torch.zeros(3)}, r"bias \(3,\)"),
        ({"bias": torch.zeros(2).double()}, r"one floating-point dtype.* bias \(2,\) torch.float64"),
        ({"labels": torch.zeros(3).long()}, r"labels \(B,\) of int64.* labels \(3,\) torch.int64"),
        ({"labels": torch.zeros(4)}, r"labels \(B,\) of int64.* labels \(4,\) torch.float32"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"labels: expected values from 0 to 1 .* got 0 to 2; check the class"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, r"labels: expected values from 0 to 1 .* got -1 to 1"),
        (
            {"weight": torch.zeros(1, 3), "bias": None, "labels": torch.tensor([0, 1, 2, 0])},
            "labels: expected values from 0 to 1",
        ),
    ],
)
def test_bad_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        HeadBatch(**arguments(**changed))


def test_logistic_head_takes_labels_0_and_1():
    batch = HeadBatch(**arguments(weight=torch.zeros(1, 3), bias=torch.zeros(1)))
    assert batch.is_logistic
    assert batch.basics.mean_residuals.flatten().tolist() == [0.125, -0.125, -0.125, 0.125]


@pytest.mark.parametrize("outputs", [1, 3])
def test_loss_is_torchs_own_bit_for_bit(outputs):
    head = make_head(5, 4, outputs)
    assert torch.equal(head.batch.loss, head.loss(head.theta))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_memory_ends_with_an_optimizer_step(optimizer):
    head = make_head(5, 4, 3)
    layer = torch.nn.Linear(4, 3).double()
    batch = HeadBatch(head.features, head.labels, layer.weight, layer.bias)
    steps = optimizer(layer.parameters(), lr=0.1)
    for _ in range(2):
        fresh = HeadBatch(head.features, head.labels, layer.weight.clone(), layer.bias.clone())
        with torch.no_grad():
            assert torch.equal(head_gradient(batch), head_gradient(fresh))
            assert torch.equal(head_hvp(batch, like_theta(head)), head_hvp(fresh, like_theta(head)))
        sum(head_objective(batch, gradient=like_theta(head, 2))).backward()
        steps.step()


def test_remembered_values_do_not_enter_a_graph_nor_leave_one():
    batch = make_head(5, 4, 3).batch
    with torch.no_grad():
        silent = head_gradient(batch)
    recorded = head_gradient(batch)
    assert not silent.requires_grad
    assert recorded.requires_grad
    with torch.no_grad():
        assert head_gradient(batch) is silent


def test_a_remembered_value_that_was_written_into_is_computed_again():
    batch = make_head(5, 4, 3).batch
    with torch.no_grad():
        first = head_gradient(batch)
        right = first.clone()
        first += 1
        assert torch.equal(head_gradient(batch), right)


def test_inference_tensors_work_and_are_not_remembered():
    head = make_head(5, 4, 3)
    expected = head_gradient(head.batch).detach()
    with torch.inference_mode():
        features, theta = head.features.clone(), head.theta.clone()
        batch = HeadBatch(features, head.labels, theta[:, :-1], theta[:, -1])
        assert torch.equal(head_gradient(batch), expected)
        features += 1
        assert not torch.equal(head_gradient(batch), expected)
