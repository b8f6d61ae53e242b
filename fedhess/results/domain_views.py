"""Open a finished job again: its settings, its final models, and what the head of each sees of every domain.

This is analysis after training has ended, so a target domain may be read; before, nothing here opens a run.
"""

from dataclasses import dataclass

import torch

from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_generator
from fedhess.curvature import HeadBatch
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.client.evaluation import BATCH_SIZE, predictions
from fedhess.federation.server.checkpoint import below
from fedhess.jobs.job import PlannedRun
from fedhess.jobs.reopening import require_finished
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import LocalDomain, build_model, local_domain


def load_model(run: PlannedRun) -> HeadedModel:
    """Build a finished run's model with its final weights, or their average over rounds, in evaluation mode.

    Raises:
        UsageError: The checkpoint is absent, damaged, or of another model.
    """
    require_finished(run)
    checkpoint = run.directory.load_checkpoint()
    assert checkpoint is not None, "a finished run has a checkpoint"
    model = build_model(run.config)
    stored = below("model/", checkpoint.tensors) | below("evaluated/", checkpoint.tensors)
    wanted = model.state_dict()
    shapes, expected = ({name: value.shape for name, value in state.items()} for state in (stored, wanted))
    if shapes != expected:
        different = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise UsageError(
            f"{run.directory.path}: its checkpoint does not fit the model {run.config.model!r} and differs in: "
            f"{', '.join(different)}; open it with the version of fedhess that trained it"
        )
    model.load_state_dict(stored)
    return model.eval()


@dataclass(frozen=True)
class DomainView:
    """What a final model's head sees of one domain."""

    domain: str
    role: str  # source or target
    split: str  # which of its examples these are, in words
    accuracy: float  # in [0, 1]
    batch: HeadBatch  # features, labels and head, in float64 on the CPU


def view_domains(run: PlannedRun, *, most_examples: int) -> list[DomainView]:
    """Compute the features of every domain of a finished run under its final model: sources first, then targets.

    A source shows the split that it is evaluated on, a target everything (its in split where the run splits targets).
    Of a split with more than ``most_examples``
    examples as many are drawn without replacement, by (seed, domain) alone: every strategy gets the same.

    Args:
        run: A finished run.
        most_examples: Upper bound on the examples of a domain.

    Raises:
        UsageError: The run is not finished, or its checkpoint is damaged.
    """
    model = load_model(run)
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
