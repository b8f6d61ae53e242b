"""Evaluate a model on one client's examples."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedhess.alignment.statistics import head_batch
from fedhess.base.seeds import seeded_generator
from fedhess.base.transfers import send
from fedhess.curvature import head_gradient, head_hvp, mean_loss
from fedhess.federation.protocol import BINS, CALIBRATION, CONFUSION
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain

BATCH_SIZE = 256
ALIGNMENT_EXAMPLES = 1024  # largest number of examples for alignment statistics


@dataclass
class Evaluation:
    """Mean loss, accuracy in [0, 1] and number of examples; for alignment the head's gradient and HGP, (C, K) each.

    ``counts`` is what :func:`count_predictions` returns.
    """

    loss: float
    accuracy: float
    examples: int
    counts: dict[str, Tensor]
    alignment: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate_model(
    model: HeadedModel, data: LocalDomain, *, indices: Tensor | None = None, with_alignment: bool = False
) -> Evaluation:
    """Evaluate on the client's evaluation examples, or on others of its domain.

    Args:
        model: The model; it is left in evaluation mode.
        data: The client's examples.
        indices: Examples of the domain to use in place of the evaluation examples.
        with_alignment: Whether the head's gradient and HGP are computed too, on at most :data:`ALIGNMENT_EXAMPLES`
            examples drawn with the run's seed, the same in every round.
    """
    chosen = data.evaluate_indices if indices is None else indices
    model.eval()
    parts = torch.split(chosen, BATCH_SIZE)
    kept = torch.split(_alignment_sample(len(chosen), data), BATCH_SIZE) if with_alignment else ()
    losses, seen, predicted, confidences, features_kept, labels_kept = [], [], [], [], [], []
    for number, (inputs, labels) in enumerate(data.batches(parts)):
        features = model.features(inputs)
        logits = model.head(features)
        losses.append(mean_loss(logits, labels))
        seen.append(labels)
        predicted.append(predictions(logits))
        confidences.append(confidence(logits))
        if with_alignment:
            positions = send(kept[number].nonzero().squeeze(1), labels.device)
            features_kept.append(features[positions])
            labels_kept.append(labels[positions])
    # The host waits for the device only here.
    numbers = torch.cat([torch.stack(losses), *confidences]).cpu()
    labels, guesses = torch.stack([torch.cat(seen), torch.cat(predicted)]).cpu()
    total_loss = 0.0
    for loss, part in zip(numbers[: len(parts)].tolist(), parts, strict=True):
        total_loss += loss * len(part)  # sum() would round differently from Python 3.12 on
    classes = max(2, model.head.out_features)
    counts = count_predictions(labels, guesses, numbers[len(parts) :], classes=classes)
    hits = int(counts[CONFUSION].trace())
    result = Evaluation(total_loss / len(chosen), hits / len(chosen), len(chosen), counts)
    if with_alignment:
        batch = head_batch(model, torch.cat(features_kept), torch.cat(labels_kept))
        gradient = head_gradient(batch)
        result.alignment = {"gradient": gradient, "hgp": head_hvp(batch, gradient)}
    return result


def predictions(logits: Tensor) -> Tensor:
    """Return the most likely class of each example, (B,): the sign for one logit, the largest logit otherwise."""
    return (logits.squeeze(1) > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def confidence(logits: Tensor) -> Tensor:
    """Return the probability of the most likely class of each example, (B,)."""
    return logits.squeeze(1).abs().sigmoid() if logits.shape[1] == 1 else logits.softmax(1).amax(1)


def count_predictions(labels: Tensor, predicted: Tensor, confidences: Tensor, *, classes: int) -> dict[str, Tensor]:
    """Count examples by label and prediction, and by how confident the model was.

    Args:
        labels: (B,), integers in [0, C).
        predicted: (B,), the same.
        confidences: (B,), the probability in [0, 1] of the predicted class; NaN counts as 0.
        classes: C.

    Returns:
        ``"confusion"``, (C, C) int32: examples of each label (row) by prediction (column). ``"calibration"``, (15, 3)
        float64: row b has the number of examples whose confidence is in (b/15, (b+1)/15], how many of these are
        predicted correctly, and the sum of their confidences, added in the order given.

    >>> labels, predicted = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    >>> counts = count_predictions(labels, predicted, torch.tensor([1.0, 0.75, 0.75]), classes=2)
    >>> counts["confusion"].tolist(), counts["calibration"][[11, 14]].tolist()
    ([[1, 0], [1, 1]], [[2.0, 1.0, 1.5], [1.0, 1.0, 1.0]])
    """
    # NumPy takes a third of the time that torch does for so few numbers.
    label, guess, sure = labels.numpy(), predicted.numpy(), confidences.numpy().astype(np.float64)
    confusion = np.bincount(label * classes + guess, minlength=classes**2).astype(np.int32)
    sure = np.clip(np.nan_to_num(sure, nan=0.0), 0, 1)
    bins = np.maximum(np.ceil(sure * BINS).astype(np.int64) - 1, 0)
    columns = [np.bincount(bins, weights=each, minlength=BINS) for each in (None, label == guess, sure)]
    calibration = np.stack(columns, axis=1).astype(np.float64)
    return {CONFUSION: torch.from_numpy(confusion).view(classes, classes), CALIBRATION: torch.from_numpy(calibration)}


def _alignment_sample(size: int, data: LocalDomain) -> Tensor:
    """Mark the examples drawn for alignment statistics, (size,): drawn, since a split may be sorted by class."""
    order = torch.randperm(size, generator=seeded_generator(*data.key, "alignment"))
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, order[:ALIGNMENT_EXAMPLES], value=True)
