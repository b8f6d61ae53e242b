"""Evaluate a model on one client's examples."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedhess.alignment.statistics import head_batch
from fedhess.base.seeds import seeded_generator
from fedhess.base.transfers import send
from fedhess.curvature import head_gradient, head_hvp, mean_loss
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain

BATCH_SIZE = 256
ALIGNMENT_EXAMPLES = 1024  # most examples that the alignment statistics are of


@dataclass
class Evaluation:
    """Result of evaluating one client.

    Attributes:
        loss: Mean cross-entropy (logistic loss for one logit) over the examples.
        accuracy: Fraction in [0, 1] of examples whose most likely class is the label.
        examples: Number of examples.
        alignment: For source clients: head gradient and HGP, each (C, K); of a split with more than
            :data:`ALIGNMENT_EXAMPLES` examples, on as many drawn by the run's seed, in every round the same.
    """

    loss: float
    accuracy: float
    examples: int
    alignment: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate_model(
    model: HeadedModel, data: LocalDomain, *, indices: Tensor | None = None, with_alignment: bool = False
) -> Evaluation:
    """Evaluate on the client's evaluation examples, or on others of its own.

    Args:
        model: The model; it is left in evaluation mode.
        data: The client's examples.
        indices: Which examples of the domain, in place of the evaluation examples.
        with_alignment: Whether the head's gradient and HGP are measured too: only where the client may disclose them.

    Raises:
        ValueError: The client has no example to evaluate.
    """
    chosen = data.evaluate_indices if indices is None else indices
    if len(chosen) == 0:
        raise ValueError("the client has no example to evaluate")
    model.eval()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    kept = torch.split(_alignment_sample(len(chosen), data), BATCH_SIZE) if with_alignment else ()
    features_kept: list[Tensor] = []
    labels_kept: list[Tensor] = []
    for number, (inputs, labels) in enumerate(data.batches(torch.split(chosen, BATCH_SIZE))):
        features = model.features(inputs)
        logits = model.head(features)
        losses.append(mean_loss(logits, labels))
        hits.append((predictions(logits) == labels).sum())
        if with_alignment:
            positions = send(kept[number].nonzero().squeeze(1), labels.device)
            features_kept.append(features[positions])
            labels_kept.append(labels[positions])
    count, total_loss, correct = len(chosen), 0.0, 0
    # Only here does the host wait for the device.
    numbers = torch.stack(losses).tolist(), torch.stack(hits).tolist()
    for part, loss, hit in zip(torch.split(chosen, BATCH_SIZE), *numbers, strict=True):
        total_loss += loss * len(part)
        correct += hit
    result = Evaluation(loss=total_loss / count, accuracy=correct / count, examples=count)
    if with_alignment:
        result.alignment = _alignment(model, torch.cat(features_kept), torch.cat(labels_kept))
    return result


def predictions(logits: Tensor) -> Tensor:
    """Return the most likely class of each example, (B,): the sign for one logit, the largest logit otherwise."""
    return (logits.squeeze(1) > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def _alignment_sample(size: int, data: LocalDomain) -> Tensor:
    """Mark the examples of a split that the alignment statistics are of, (size,): a split may be sorted by class."""
    order = torch.randperm(size, generator=seeded_generator(*data.key, "alignment"))
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, order[:ALIGNMENT_EXAMPLES], value=True)


def _alignment(model: HeadedModel, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    batch = head_batch(model, features, labels)
    gradient = head_gradient(batch)
    return {"gradient": gradient, "hgp": head_hvp(batch, gradient)}
