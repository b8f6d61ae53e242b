"""The features and labels of every domain, as the head of a finished run's model sees them.

This analysis follows the end of training, so it may read a target domain; nothing here opens an unfinished run.
"""

from dataclasses import dataclass

import torch

from fedhess.base.seeds import seeded_generator
from fedhess.curvature import HeadBatch
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.client.evaluation import BATCH_SIZE, predictions
from fedhess.jobs.job import PlannedRun
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain, local_domain
from fedhess.results.models import RunModel


@dataclass(frozen=True)
class DomainView:
    """What a model's head sees of one domain."""

    domain: str
    role: str  # source or target
    split: str  # which examples of the domain these are, in words
    accuracy: float  # in [0, 1]
    batch: HeadBatch  # features, labels and head, in float64 on the CPU


def view_domains(found: RunModel, *, most_examples: int) -> list[DomainView]:
    """Compute the features of every domain of a finished run under one of its models: sources first, then targets.

    A source shows its evaluation split; a target shows all examples, or its in split if the run splits targets. From a
    split with more than ``most_examples`` examples, that many are drawn without replacement. The draw depends on (seed,
    domain) alone, so every strategy gets the same examples.
    """
    return view_under(found.load(), found.run, most_examples=most_examples)


def view_under(model: HeadedModel, run: PlannedRun, *, most_examples: int) -> list[DomainView]:
    """Compute the features of every domain of a finished run under any model, as `view_domains`."""
    roles = dict.fromkeys(run.config.sources, SOURCE) | dict.fromkeys(run.config.targets, TARGET)
    return [_view(run, model, domain, role, most_examples) for domain, role in roles.items()]


@torch.no_grad()
def _view(run: PlannedRun, model: HeadedModel, domain: str, role: str, most: int) -> DomainView:
    data = local_domain(run.config, domain=domain, role=role)
    indices = data.evaluate_indices
    total = len(indices)
    if total > most:
        generator = seeded_generator(run.config.seed, "diagnosis", domain)
        indices = indices[torch.randperm(total, generator=generator)[:most].sort().values]
    features, labels = [], []
    for part in torch.split(indices, BATCH_SIZE):
        inputs, classes = data.batch(part)
        features.append(model.features(inputs).cpu().double())
        labels.append(classes.cpu())
    head = model.head
    bias = None if head.bias is None else head.bias.detach().cpu().double()
    batch = HeadBatch(torch.cat(features), torch.cat(labels), head.weight.detach().cpu().double(), bias)
    accuracy = float((predictions(batch.basics.logits) == batch.labels).double().mean())
    return DomainView(domain, role, _split_name(data, role, len(indices), total), accuracy, batch)


def _split_name(data: LocalDomain, role: str, count: int, total: int) -> str:
    whole = "in split" if len(data.out_indices) else "all"
    name = whole if role == TARGET else "held-out" if data.holds_out else "training"
    return f"{name} ({count})" if count == total else f"{name} ({count} of {total}, drawn)"
