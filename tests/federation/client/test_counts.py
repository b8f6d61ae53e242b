"""Counts of predictions: what a client counts, in which forms, and how much of a file they take."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import toy_config

from fedhess.federation.client.evaluation import confidence, count_predictions, evaluate_model, predictions
from fedhess.federation.server.run_directory import RunDirectory
from fedhess.jobs.metrics import accuracy, add_calibrations, add_confusions, calibration_error
from fedhess.jobs.rows import domain_rows
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import local_domain

Run = Callable[..., Any]


@pytest.mark.parametrize("classes", [1, 4])
def test_counts_are_those_of_the_models_probabilities(classes: int) -> None:
    config = toy_config(domains_options={"classes": classes})
    data = local_domain(config, domain="east", role="target")
    torch.manual_seed(0)
    model = HeadedModel(nn.Identity(), nn.Linear(12, classes)).double()
    found = evaluate_model(model, data)
    inputs, labels = next(iter(data.batches([torch.arange(48)])))
    logits = model(inputs).detach()
    # The one logit is the second class's, against a logit of 0.
    probabilities = (torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits).softmax(1)
    guesses, sure = probabilities.argmax(1), probabilities.amax(1)
    confusion, bins = torch.zeros(max(classes, 2), max(classes, 2)), torch.zeros(15, 3, dtype=torch.float64)
    for label, guess, value in zip(labels.tolist(), guesses.tolist(), sure.tolist(), strict=True):
        confusion[label, guess] += 1
        bins[math.ceil(value * 15) - 1] += torch.tensor([1.0, label == guess, value], dtype=torch.float64)
    assert torch.equal(found.counts["confusion"], confusion.int())
    torch.testing.assert_close(found.counts["calibration"], bins, rtol=1e-12, atol=0)
    assert found.accuracy == float((guesses == labels).sum()) / 48 == confusion.trace() / 48


def test_sums_of_confidences_do_not_depend_on_the_order_of_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(5000, 7, generator=generator), torch.randint(7, (5000,), generator=generator)
    sure, guesses = confidence(logits), predictions(logits)
    order = torch.randperm(5000, generator=generator)
    counts = count_predictions(labels, guesses, sure, classes=7)["calibration"]
    assert torch.equal(counts, count_predictions(labels[order], guesses[order], sure[order], classes=7)["calibration"])


def test_an_example_on_the_edge_of_two_bins_is_in_the_lower_one_and_one_without_a_number_in_the_first() -> None:
    sure = torch.tensor([0.2, 0.2 + 1e-9, 1.0, 0.0, math.nan], dtype=torch.float64)
    zeros = torch.zeros(5, dtype=torch.int64)
    counts = count_predictions(zeros, zeros, sure, classes=2)["calibration"]
    assert counts[:, 0].nonzero().squeeze(1).tolist() == [0, 2, 3, 14]
    assert counts[0].tolist() == [2, 2, 0.0]


def test_rows_have_the_counts_of_every_evaluation_and_those_of_clients_add_up(toy_run: Run) -> None:
    alone, several = toy_run(rounds=1), toy_run(rounds=1, partition="dirichlet", clients_per_domain=2)
    for row in alone.rows:
        assert sum(count for _, _, count in row["confusion"]) == row["examples"]
        assert accuracy(row["confusion"]) == row["accuracy"]
        assert [sum(column) for column in zip(*row["calibration"], strict=True)][:2] == [
            row["examples"], round(row["accuracy"] * row["examples"])
        ]  # fmt: skip
    for row in domain_rows(several.rows):
        mine = [each for each in several.rows if (each["round"], each["domain"]) == (row["round"], row["domain"])]
        assert row["confusion"] == add_confusions([each["confusion"] for each in mine])
        assert row["calibration"] == add_calibrations([each["calibration"] for each in mine])
        assert accuracy(row["confusion"]) == pytest.approx(row["accuracy"])


def test_a_client_without_counts_hides_those_of_its_domain_and_old_rows_stay_as_they_are() -> None:
    row = {"round": 1, "domain": "a", "role": "target", "split": "all", "examples": 2, "loss": 1.0, "accuracy": 0.5}
    row |= {"gradient_distance": None, "hgp_distance": None, "failures": []}
    counts = {"confusion": [[0, 0, 1], [1, 0, 1]], "calibration": [[2, 1, 1.5]]}
    (merged,) = domain_rows([row | counts, row | counts])
    assert (merged["confusion"], calibration_error(merged["calibration"])) == ([[0, 0, 2], [1, 0, 2]], 0.25)
    (merged,) = domain_rows([row | counts, row | dict.fromkeys(counts)])
    assert merged["confusion"] is merged["calibration"] is None
    (merged,) = domain_rows([row, row])
    assert "confusion" not in merged


def test_a_row_of_345_classes_takes_a_few_bytes_an_example(toy_run: Run, tmp_path: Path) -> None:
    toy_run(rounds=1, directory=tmp_path, domains_options={"classes": 345, "examples": 3450})
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    for line, row in zip(lines, RunDirectory(tmp_path).rows(), strict=True):
        assert len(json.dumps(row["confusion"])) < 16 * row["examples"], "at most one entry an example"
        assert len(line) < 16 * row["examples"] + 2500 < 345**2
