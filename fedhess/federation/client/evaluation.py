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
    """Mean loss, accuracy in [0, 1] and number of examples; for alignment the head's gradient and HGP, (C, K) each."""

    loss: float
    accuracy: float
    examples: int
    alignment: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate_model(
    model: HeadedModel, data: LocalDomain, *, indices: Tensor | None = None, with_alignment: bool = False
) -> Evaluation:
    """Evaluate on the client's evaluation examples, or on others of its domain.

    Args:
        model: The model; it is left in evaluation mode.
        data: The client's examples.
        indices: Which examples of the domain, in place of the evaluation examples.
        with_alignment: Whether the head's gradient and HGP are computed too, on at most :data:`ALIGNMENT_EXAMPLES`
            examples drawn by the run's seed, in every round the same.

    Raises:
        ValueError: There is no example.
    """
    chosen = data.evaluate_indices if indices is None else indices
    if len(chosen) == 0:
        raise ValueError("the client has no example to evaluate")
    model.eval()
    parts = torch.split(chosen, BATCH_SIZE)
    kept = torch.split(_alignment_sample(len(chosen), data), BATCH_SIZE) if with_alignment else ()
    losses, hits, features_kept, labels_kept = [], [], [], []
    for number, (inputs, labels) in enumerate(data.batches(parts)):
        features = model.features(inputs)
        logits = model.head(features)
        losses.append(mean_loss(logits, labels))
        hits.append((predictions(logits) == labels).sum())
        if with_alignment:
            positions = send(kept[number].nonzero().squeeze(1), labels.device)
            features_kept.append(features[positions])
            labels_kept.append(labels[positions])
    # Only here does the host wait for the device.
    loss_of_parts, hits_of_parts = torch.stack(losses).tolist(), torch.stack(hits).tolist()
    total_loss = 0.0
    for loss, part in zip(loss_of_parts, parts, strict=True):
        total_loss += loss * len(part)  # sum() would round differently from Python 3.12 on
    result = Evaluation(total_loss / len(chosen), sum(hits_of_parts) / len(chosen), len(chosen))
    if with_alignment:
        batch = head_batch(model, torch.cat(features_kept), torch.cat(labels_kept))
        gradient = head_gradient(batch)
        result.alignment = {"gradient": gradient, "hgp": head_hvp(batch, gradient)}
    return result


def predictions(logits: Tensor) -> Tensor:
    """Return the most likely class of each example, (B,): the sign for one logit, the largest logit otherwise."""
    return (logits.squeeze(1) > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def _alignment_sample(size: int, data: LocalDomain) -> Tensor:
    """Mark the examples of a split that the alignment statistics are of, (size,): a split may be sorted by class."""
    order = torch.randperm(size, generator=seeded_generator(*data.key, "alignment"))
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, order[:ALIGNMENT_EXAMPLES], value=True)
