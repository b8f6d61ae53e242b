"""Metrics from counts are those of the single examples."""

import itertools

import numpy as np
import pytest
import torch

from fedhess.federation.client.evaluation import count_predictions
from fedhess.jobs.metrics import (
    accuracy,
    add_calibrations,
    add_confusions,
    balanced_accuracy,
    calibration_error,
    class_accuracies,
    worst_class_accuracy,
)


def counted(labels: np.ndarray, guesses: np.ndarray, sure: np.ndarray) -> tuple[list[list[int]], list[list[float]]]:
    found = count_predictions(*map(torch.from_numpy, (labels, guesses, sure)), classes=5)
    confusion = [[a, b, int(n)] for (a, b), n in np.ndenumerate(found["confusion"].numpy()) if n]
    return confusion, found["calibration"].tolist()


@pytest.mark.parametrize("clients", [1, 3])
def test_metrics_are_those_of_the_examples(clients: int) -> None:
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 3, 4], size=600, p=[0.6, 0.2, 0.15, 0.05])  # none is of class 2
    guesses = np.where(random.random(600) < 0.6, labels, random.integers(0, 5, size=600))
    sure = random.uniform(0.2, 1.0, size=600)
    parts = [
        counted(*part) for part in zip(*(np.array_split(a, clients) for a in (labels, guesses, sure)), strict=True)
    ]
    confusion, calibration = add_confusions([c for c, _ in parts]), add_calibrations([c for _, c in parts])
    right = labels == guesses
    recalls = [right[labels == c].mean() for c in (0, 1, 3, 4)]
    assert accuracy(confusion) == pytest.approx(right.mean())
    assert class_accuracies(confusion, classes=5) == [*map(pytest.approx, recalls[:2]), None, *recalls[2:]]
    assert balanced_accuracy(confusion, classes=5) == pytest.approx(np.mean(recalls))
    assert worst_class_accuracy(confusion, classes=5) == pytest.approx(min(recalls))
    edges = np.linspace(0, 1, 16)
    bins = [(sure > low) & (sure <= high) for low, high in itertools.pairwise(edges)]
    error = sum(b.mean() * abs(right[b].mean() - sure[b].mean()) for b in bins if b.any())
    assert calibration_error(calibration) == pytest.approx(error)


def test_without_examples_there_is_no_metric() -> None:
    assert accuracy([]) is balanced_accuracy([], classes=2) is worst_class_accuracy([], classes=2) is None
    assert calibration_error([[0, 0, 0.0]] * 15) is None
    assert class_accuracies([], classes=2) == [None, None]
