"""Time the closed forms of the head against double backward and against a plain ERM step.

The timed work is that of a round's clients, and of the averaging between them, on the head: features in, updated head
and gradients of features, weight and bias out. Batches, weights and dtype (float32) are the same on both sides.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhess.alignment.step import Step, run_forward
from fedhess.curvature import HeadBatch, head_gradient, head_hvp, hessian_diagonal, spectral_distance
from fedhess.curvature.distances import head_objective
from fedhess.models.headed import HeadedModel
from fedhess.simulations.benchmarks.measuring import Row, in_turn, row, seconds_of
from fedhess.strategies.hgp import HGP

BATCH, FEATURES = 32, 2048
ALPHA, BETA = 1e-4, 5e-3
PROBES = 300
SPECTRAL_SECONDS = 10.0


@dataclass
class Federation:
    """One head, as a model whose inputs are the features, and one batch of every domain."""

    model: HeadedModel
    batches: list[tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer

    @staticmethod
    def draw(*, outputs: int, domains: int) -> "Federation":
        """Draw a head with C outputs and ReLU-like features for every domain, always the same."""
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(FEATURES, outputs)
        with torch.no_grad():
            head.weight.normal_(0.0, FEATURES**-0.5, generator=generator)
            head.bias.zero_()
        features = [torch.randn(BATCH, FEATURES, generator=generator).relu() for _ in range(domains)]
        labels = [torch.randint(0, outputs, (BATCH,), generator=generator) for _ in range(domains)]
        batches = [(part.requires_grad_(), own) for part, own in zip(features, labels, strict=True)]
        return Federation(HeadedModel(nn.Identity(), head), batches, torch.optim.SGD(head.parameters(), lr=1e-3))

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of the head."""
        return [self.model.head.weight, self.model.head.bias]

    def head_batches(self) -> list[HeadBatch]:
        """Return every domain's batch for the closed forms."""
        return [HeadBatch(features, labels, *self.parameters) for features, labels in self.batches]

    def losses(self) -> Iterator[Tensor]:
        """Compute the cross-entropy of every domain, one at a time."""
        for features, labels in self.batches:
            yield functional.cross_entropy(functional.linear(features, *self.parameters), labels)

    def step(self, objectives: Iterable[Tensor]) -> None:
        """Differentiate each domain's objective by head and features, and step on the head."""
        for objective, (features, _) in zip(objectives, self.batches, strict=True):
            objective.backward()  # type: ignore[no-untyped-call]
            features.grad = None  # the featurizer's backward would consume it
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def head_rows(*, repeats: int) -> list[Row]:
    """Measure the figures of the head; the slow diagonal and spectral distance take a third of the repetitions."""
    few = max(3, repeats // 3)
    times = _milliseconds({"ours": _exact_diagonals, "probes": _probed_diagonals}, few, outputs=7, domains=3)
    what = f"exact diagonal, B={BATCH} D={FEATURES} C=7, 3 domains"
    rows = [
        _faster(what, times["ours"], f"{PROBES} double-backward probes", times["probes"], at_least=150.0, count=few)
    ]
    for outputs, domains, limit in ((7, 3, 1.66), (345, 5, 1.58)):  # by counting: docs/design.md
        rows += _step_rows(outputs, domains, limit, repeats)
    return [*rows, _spectral_row(few)]


def _step_rows(outputs: int, domains: int, bar: float, repeats: int) -> list[Row]:
    contestants: dict[str, Callable[[Federation], None]] = {
        "ours": _closed_form_step,
        "anew": _double_backward_step,
        "kept": partial(_double_backward_step, keep_graphs=True),
        "default": _default_step,
        "erm": lambda federation: federation.step(federation.losses()),
    }
    times = _milliseconds(contestants, repeats, outputs=outputs, domains=domains)
    what = f"HGP head step, references included, B={BATCH} D={FEATURES} C={outputs}, {domains} domains"
    rows = [
        _faster(what, times["ours"], "double backward, each exchange anew", times["anew"], at_least=bar, count=repeats),
        _faster(what, times["ours"], "double backward, graphs kept between exchanges", times["kept"], count=repeats),
    ]
    for form, name, at_most in (("as published", "ours", 3.8), ("as by default", "default", 4.8)):
        against_erm = f"{what}, {form}, against plain ERM head step (ms)"
        limit = at_most if outputs > BATCH else None
        rows.append(row(against_erm, times[name], times["erm"], at_most=limit, count=repeats))
    return rows


def _faster(what: str, ours: float, other_name: str, other: float, *, count: int, at_least: float | None = None) -> Row:
    return row(f"{what}, against {other_name} (ms)", ours, other, ratio=other / ours, at_least=at_least, count=count)


def _spectral_row(repeats: int) -> Row:
    """Time the Hessian spectral distance at the size of ResNet-50's head for OfficeHome: 65 x 2049."""
    examples, outputs = 512, 65
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(outputs, FEATURES, generator=generator) / FEATURES**0.5, torch.zeros(outputs)

    def draw() -> HeadBatch:
        features = torch.randn(examples, FEATURES, generator=generator).relu()
        return HeadBatch(features, torch.randint(0, outputs, (examples,), generator=generator), weight, bias)

    one, other = draw(), draw()
    spectral_distance(one, other)
    seconds = statistics.median(seconds_of(lambda: spectral_distance(one, other)) for _ in range(repeats))
    what = f"Hessian spectral distance by Lanczos, B={examples} D={FEATURES} C={outputs} (s)"
    return row(what, seconds, at_most=SPECTRAL_SECONDS, count=repeats)


def _milliseconds(
    contestants: Mapping[str, Callable[[Federation], None]], repeats: int, *, outputs: int, domains: int
) -> dict[str, float]:
    """Return the median of each contestant on a federation of its own, after one call to warm up."""
    federations = {name: Federation.draw(outputs=outputs, domains=domains) for name in contestants}
    calls = {name: partial(seconds_of, partial(run, federations[name])) for name, run in contestants.items()}
    return {name: 1e3 * statistics.median(times[1:]) for name, times in in_turn(calls, repeats + 1).items()}


def _closed_form_step(federation: Federation) -> None:
    """Do both exchanges and the step as this package's clients do: a client keeps its batch in a round."""
    batches = federation.head_batches()
    with torch.no_grad():
        gradient = torch.stack([head_gradient(batch) for batch in batches]).mean(0)
        hgp = torch.stack([head_hvp(batch, gradient) for batch in batches]).mean(0)

    def objectives() -> Iterator[Tensor]:
        for batch in batches:
            terms = head_objective(batch, gradient=gradient, hgp=hgp)
            yield terms.loss + BETA * terms.gradient_distance + ALPHA * terms.hgp_distance

    federation.step(objectives())


def _default_step(federation: Federation) -> None:
    """Do the same with HGP's defaults: relative and corrected distances, and a limited penalty."""
    strategy, model, held = HGP(), federation.model, 10 * BATCH
    forwards = [run_forward(model, features, labels) for features, labels in federation.batches]
    with torch.no_grad():
        answers = {"gradient": torch.stack([head_gradient(forward.batch) for forward in forwards])}
        mean = answers["gradient"].mean(0)
        answers["hgp"] = torch.stack([head_hvp(forward.batch, mean) for forward in forwards])
        reference = {name: values.mean(0) for name, values in answers.items()}
        reference |= {f"{name}_size": values.square().sum((1, 2)).mean() for name, values in answers.items()}
    reference["domain_examples"] = torch.tensor(held)
    reference["example_weight"] = torch.tensor(1 / (held * len(forwards)))

    def objectives() -> Iterator[Tensor]:
        for forward in forwards:
            step = Step(model, forward, {}, index=0, server_round=1, in_answers=held)
            penalty = strategy.penalty(step, reference)
            assert penalty is not None
            yield step.loss + step.limited(penalty)

    federation.step(objectives())


def _double_backward_step(federation: Federation, *, keep_graphs: bool = False) -> None:
    """Do the same by double backward.

    With ``keep_graphs`` one forward pass and one gradient per domain serve both exchanges and the step. Otherwise each
    exchange is answered from features, labels and head alone.
    """
    parameters = federation.parameters

    def gradients(*, create_graph: bool) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        for loss in federation.losses():
            yield loss, torch.autograd.grad(loss, parameters, create_graph=create_graph)

    kept = list(gradients(create_graph=True)) if keep_graphs else None
    mean_gradient = _means(own for _, own in kept or gradients(create_graph=False))
    mean_hgp = _means(
        torch.autograd.grad(own, parameters, mean_gradient, retain_graph=keep_graphs)
        for _, own in kept or gradients(create_graph=True)
    )

    def objectives() -> Iterator[Tensor]:
        for loss, own in kept or gradients(create_graph=True):
            hgp = torch.autograd.grad(own, parameters, own, create_graph=True)
            yield loss + BETA * _squared_distance(own, mean_gradient) + ALPHA * _squared_distance(hgp, mean_hgp)

    federation.step(objectives())


def _squared_distance(ones: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    return torch.stack([(one - other).square().sum() for one, other in zip(ones, others, strict=True)]).sum()


def _means(values: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).detach().mean(0) for parts in zip(*values, strict=True)]


def _exact_diagonals(federation: Federation) -> None:
    with torch.no_grad():
        for batch in federation.head_batches():
            hessian_diagonal(batch)


def _probed_diagonals(federation: Federation) -> None:
    parameters = federation.parameters
    generator = torch.Generator().manual_seed(0)
    for loss in federation.losses():
        own = torch.autograd.grad(loss, parameters, create_graph=True)
        totals = [torch.zeros_like(part) for part in parameters]
        for _ in range(PROBES):
            signs = [2.0 * torch.randint(0, 2, part.shape, generator=generator) - 1.0 for part in parameters]
            images = torch.autograd.grad(own, parameters, signs, retain_graph=True)
            for total, sign, image in zip(totals, signs, images, strict=True):
                total.addcmul_(sign, image, value=1 / PROBES)
