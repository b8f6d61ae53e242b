"""Time the closed forms of the head against double backward and against a plain ERM step.

What is timed is what the clients of a round and the averaging between them do with the head: features in, updated head
and gradients of features, weight and bias out. Batches, weights and dtype (float32) are the same on both sides; the
repetitions of all contestants are interleaved, so that a busy machine slows them alike, and medians are compared.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.curvature import HeadBatch, head_gradient, head_hvp, hessian_diagonal, spectral_distance
from fedhess.curvature.distances import head_objective

BATCH, FEATURES = 32, 2048
ALPHA, BETA = 1e-4, 5e-3
PROBES = 300
SPECTRAL_SECONDS = 10.0

Row = dict[str, str | float | bool | None]


@dataclass
class Federation:
    """One head and the features and labels of one batch of every domain."""

    weight: Tensor
    bias: Tensor
    features: list[Tensor]
    labels: list[Tensor]
    optimizer: torch.optim.Optimizer

    @staticmethod
    def draw(*, outputs: int, domains: int) -> "Federation":
        """Draw a head with C outputs and ReLU-like features for every domain, always the same."""
        generator = torch.Generator().manual_seed(0)
        weight = (torch.randn(outputs, FEATURES, generator=generator) / FEATURES**0.5).requires_grad_()
        bias = torch.zeros(outputs, requires_grad=True)
        features = [torch.randn(BATCH, FEATURES, generator=generator).relu() for _ in range(domains)]
        labels = [torch.randint(0, outputs, (BATCH,), generator=generator) for _ in range(domains)]
        optimizer = torch.optim.SGD([weight, bias], lr=1e-3)
        return Federation(weight, bias, [part.requires_grad_() for part in features], labels, optimizer)

    def step(self, objectives: Sequence[Callable[[], Tensor]]) -> None:
        """Evaluate and differentiate each domain's objective, hand its feature gradient on, and step on the head."""
        for objective, features in zip(objectives, self.features, strict=True):
            objective().backward()  # type: ignore[no-untyped-call]
            features.grad = None  # the featurizer's backward would consume it
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def head_rows(*, repeats: int) -> list[Row]:
    """Measure the figures of the head.

    Args:
        repeats: Interleaved repetitions; the diagonal takes a third of them, since its probes are slow.

    Returns:
        Rows with ``what``, ``ours`` and ``other`` in milliseconds, ``ratio``, ``target`` and ``pass``, which is None
        for a row that is there for information.
    """
    rows = [_diagonal_row(max(3, repeats // 3))]
    for outputs, domains, target in ((7, 3, 2.0), (345, 5, 3.0)):
        rows += _step_rows(outputs, domains, target, repeats)
    return [*rows, _spectral_row(max(3, repeats // 3))]


def _step_rows(outputs: int, domains: int, target: float, repeats: int) -> list[Row]:
    contestants = {
        "ours": _closed_form_step,
        "stateless": _double_backward_step,
        "kept": _double_backward_step_keeping_graphs,
        "erm": _erm_step,
    }
    federations = {name: Federation.draw(outputs=outputs, domains=domains) for name in contestants}
    times = interleave({name: _bind(step, federations[name]) for name, step in contestants.items()}, repeats)
    what = f"HGP head step, references included, B={BATCH} D={FEATURES} C={outputs}, {domains} domains"
    rows = [
        _row(what, times["ours"], "double backward, each exchange anew", times["stateless"], target),
        _row(what, times["ours"], "double backward, graphs kept between exchanges", times["kept"], None),
    ]
    if outputs > BATCH:
        rows.append(_row(what, times["ours"], "plain ERM head step", times["erm"], 3.5, at_least=False))
    return rows


def _diagonal_row(repeats: int) -> Row:
    federation = Federation.draw(outputs=7, domains=3)
    times = interleave(
        {"ours": _bind(_exact_diagonals, federation), "probes": _bind(_probed_diagonals, federation)}, repeats
    )
    what = f"exact diagonal, B={BATCH} D={FEATURES} C=7, 3 domains"
    return _row(what, times["ours"], f"{PROBES} double-backward probes", times["probes"], 150.0)


def _spectral_row(repeats: int) -> Row:
    """Time the Hessian spectral distance at the size of ResNet-50's head for OfficeHome: 65 x 2049."""
    examples, outputs = 512, 65
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, FEATURES, generator=generator) / FEATURES**0.5
    one, other = (
        HeadBatch(
            torch.randn(examples, FEATURES, generator=generator).relu(),
            torch.randint(0, outputs, (examples,), generator=generator),
            weight,
            torch.zeros(outputs),
        )
        for _ in range(2)
    )
    seconds = interleave({"ours": lambda: _discard(spectral_distance(one, other))}, repeats)["ours"] / 1e3
    return {
        "what": f"Hessian spectral distance by Lanczos, B={examples} D={FEATURES} C={outputs} (s)",
        "ours": seconds,
        "other": SPECTRAL_SECONDS,
        "ratio": seconds / SPECTRAL_SECONDS,
        "target": f"seconds: at most {SPECTRAL_SECONDS:g}",
        "pass": seconds <= SPECTRAL_SECONDS,
    }


def _discard(value: Tensor) -> None:
    del value


def interleave(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Run all contestants in turn, ``repeats`` times after a warm-up, and return the median milliseconds of each."""
    for run in contestants.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            samples[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in samples.items()}


def _row(what: str, ours: float, other_name: str, other: float, target: float | None, *, at_least: bool = True) -> Row:
    ratio = other / ours if at_least else ours / other
    row: Row = {"what": f"{what}, against {other_name} (ms)", "ours": ours, "other": other, "ratio": ratio}
    if target is None:
        return row | {"target": "for information", "pass": None}
    bound = f"{'at least' if at_least else 'at most'} {target:g}x"
    return row | {"target": bound, "pass": ratio >= target if at_least else ratio <= target}


def _bind(step: Callable[[Federation], None], federation: Federation) -> Callable[[], None]:
    return lambda: step(federation)


def _erm_step(federation: Federation) -> None:
    def objective(features: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        return lambda: functional.cross_entropy(functional.linear(features, federation.weight, federation.bias), labels)

    federation.step([objective(z, y) for z, y in zip(federation.features, federation.labels, strict=True)])


def _closed_form_step(federation: Federation) -> None:
    """Both exchanges and the step as the clients of this package make them: a client keeps its batch in a round."""
    batches = [
        HeadBatch(features, labels, federation.weight, federation.bias)
        for features, labels in zip(federation.features, federation.labels, strict=True)
    ]
    with torch.no_grad():
        gradient = _mean(head_gradient(batch) for batch in batches)
        hgp = _mean(head_hvp(batch, gradient) for batch in batches)

    def objective(batch: HeadBatch) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            terms = head_objective(batch, gradient=gradient, hgp=hgp)
            return terms.loss + BETA * terms.gradient_distance + ALPHA * terms.hgp_distance

        return compute

    federation.step([objective(batch) for batch in batches])


def _double_backward_step(federation: Federation) -> None:
    """The same by double backward, each exchange answered from features, labels and head alone."""
    parameters = [federation.weight, federation.bias]

    def gradient_of(features: Tensor, labels: Tensor, *, create_graph: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = functional.cross_entropy(functional.linear(features, *parameters), labels)
        return loss, torch.autograd.grad(loss, parameters, create_graph=create_graph)

    pairs = list(zip(federation.features, federation.labels, strict=True))
    means_g = _means(gradient_of(*pair, create_graph=False)[1] for pair in pairs)
    means_h = _means(
        torch.autograd.grad(gradient_of(*pair, create_graph=True)[1], parameters, means_g) for pair in pairs
    )

    def objective(features: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            loss, own = gradient_of(features, labels, create_graph=True)
            return loss + _double_backward_penalty(own, parameters, means_g, means_h)

        return compute

    federation.step([objective(*pair) for pair in pairs])


def _double_backward_step_keeping_graphs(federation: Federation) -> None:
    """The same with one forward and one gradient a domain, whose graph is kept for both exchanges and the step."""
    parameters = [federation.weight, federation.bias]
    losses = [
        functional.cross_entropy(functional.linear(features, *parameters), labels)
        for features, labels in zip(federation.features, federation.labels, strict=True)
    ]
    owns = [torch.autograd.grad(loss, parameters, create_graph=True) for loss in losses]
    means_g = _means(tuple(part.detach() for part in own) for own in owns)
    means_h = _means(torch.autograd.grad(own, parameters, means_g, retain_graph=True) for own in owns)

    def objective(loss: Tensor, own: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        return lambda: loss + _double_backward_penalty(own, parameters, means_g, means_h)

    federation.step([objective(*pair) for pair in zip(losses, owns, strict=True)])


def _double_backward_penalty(
    own: tuple[Tensor, ...], parameters: list[Tensor], means_g: list[Tensor], means_h: list[Tensor]
) -> Tensor:
    hgp = torch.autograd.grad(own, parameters, own, create_graph=True)
    distance_g = torch.stack([(a - b).square().sum() for a, b in zip(own, means_g, strict=True)]).sum()
    distance_h = torch.stack([(a - b).square().sum() for a, b in zip(hgp, means_h, strict=True)]).sum()
    return BETA * distance_g + ALPHA * distance_h


def _exact_diagonals(federation: Federation) -> None:
    with torch.no_grad():
        for features, labels in zip(federation.features, federation.labels, strict=True):
            hessian_diagonal(HeadBatch(features, labels, federation.weight, federation.bias))


def _probed_diagonals(federation: Federation) -> None:
    parameters = [federation.weight, federation.bias]
    generator = torch.Generator().manual_seed(0)
    for features, labels in zip(federation.features, federation.labels, strict=True):
        loss = functional.cross_entropy(functional.linear(features, *parameters), labels)
        own = torch.autograd.grad(loss, parameters, create_graph=True)
        totals = [torch.zeros_like(part) for part in parameters]
        for _ in range(PROBES):
            signs = [2.0 * torch.randint(0, 2, part.shape, generator=generator) - 1.0 for part in parameters]
            images = torch.autograd.grad(own, parameters, signs, retain_graph=True)
            for total, sign, image in zip(totals, signs, images, strict=True):
                total.addcmul_(sign, image, value=1 / PROBES)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return _means((value,) for value in values)[0]


def _means(values: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Average tuples of tensors as they come, holding one at a time."""
    totals: list[Tensor] = []
    count = 0
    for parts in values:
        totals = (
            [total.add_(part) for total, part in zip(totals, parts, strict=True)]
            if totals
            else [part.clone() for part in parts]
        )
        count += 1
    return [total.div_(count) for total in totals]
