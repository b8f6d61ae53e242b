"""One local step of a client as a strategy sees it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from fedhess.alignment.statistics import Statistic, compute_statistic, head_batch
from fedhess.base.errors import UsageError
from fedhess.base.seeds import seeded_generator, steps_per_pass
from fedhess.curvature import HeadBatch, head_gradient
from fedhess.curvature.distances import HeadTerms, head_objective
from fedhess.models.headed import HeadedModel
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig


@dataclass
class Forward:
    """A forward pass up to the head.

    Attributes:
        model: The model that made it.
        stamp: Memory address and version counter of each parameter at the time of the pass.
        wrote_buffers: Whether the pass changed buffers of the model (running statistics that are not frozen).
        inputs: (B, ...) inputs of the batch.
        labels: (B,) class indices.
        features: (B, D) features, part of the autograd graph unless gradients were off.
        batch: The features with labels and head.
        parts: The pass split by domain if the batch holds examples of several domains; otherwise the pass itself.
    """

    model: HeadedModel
    stamp: tuple[tuple[int, int], ...]
    wrote_buffers: bool
    inputs: Tensor
    labels: Tensor
    features: Tensor
    batch: HeadBatch
    parts: list["Forward"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = self.parts or [self]

    @property
    def taken(self) -> tuple[Tensor, Tensor, list[int]]:
        """Inputs, labels and the number of examples of each part, as :func:`run_forward` takes them."""
        return self.inputs, self.labels, [len(part.labels) for part in self.parts]

    def is_made_by(self, model: HeadedModel) -> bool:
        """Whether the model made this pass and its parameters have not changed since."""
        return self.model is model and self.stamp == _stamp(model)

    def graph_bytes(self) -> int:
        """Count the bytes that the autograd graph of the features keeps, without the model's parameters."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}
        seen, ahead = set(), [self.features.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
            saved = [getattr(node, name) for name in vars(type(node)) if name.startswith("_saved_")]
            for value in (*saved, *getattr(node, "saved_tensors", ())):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(tensor, Tensor):
                        storage = tensor.untyped_storage()
                        kept[storage.data_ptr()] = storage.nbytes()
        return sum(size for place, size in kept.items() if place not in own)


# A function of a whole forward pass. It may differentiate the graph of the pass, and returns a flat tensor with as many
# values as the trained parameters have.
NetworkStatistic = Callable[[Forward], Tensor]


def _stamp(model: HeadedModel) -> tuple[tuple[int, int], ...]:
    return tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())


def run_forward(model: HeadedModel, inputs: Tensor, labels: Tensor, *, sizes: Sequence[int] | None = None) -> Forward:
    """Compute the features of inputs (B, ...) in training mode and pair them with labels (B,) and head.

    In a batch of several domains, one after the other, ``sizes`` has the number of examples of each.
    """
    model.train()
    before = [buffer._version for buffer in model.buffers()]
    features = model.features(inputs)
    wrote_buffers = before != [buffer._version for buffer in model.buffers()]
    batch = head_batch(model, features, labels)
    forward = Forward(model, _stamp(model), wrote_buffers, inputs, labels, features, batch)
    if sizes is not None and len(sizes) > 1:
        columns = [torch.split(tensor, list(sizes)) for tensor in (inputs, labels, features)]
        forward.parts = [
            Forward(model, forward.stamp, wrote_buffers, x, y, z, head_batch(model, z, y))
            for x, y, z in zip(*columns, strict=True)
        ]
    return forward


@dataclass
class Step:
    """One local step, as a strategy's penalty sees it.

    Attributes:
        model: The client's working model, in training mode.
        forward: The step's forward pass: inputs, labels, features (part of the autograd graph) and head batch.
        before: Tensors of the global model that the round began from, on the model's device.
        index: Number of the step since the beginning of the run, from 0.
        server_round: Number of the round, from 1.
        l2: Coefficient of the sum of squared parameters that is part of the loss.
        key: Key of the client's stream of batches: (seed, domain, client).
        in_answers: Number of the client's examples that the batch stands for in the statistics of the round.
    """

    model: HeadedModel
    forward: Forward
    before: Mapping[str, Tensor]
    index: int
    server_round: int
    l2: float = 0.0
    key: tuple[str | int, ...] = ()
    in_answers: float = 0.0
    _loss: Tensor | None = field(default=None, repr=False)

    @cached_property
    def generator(self) -> torch.Generator:
        """Generator of the step's random numbers, on the CPU, seeded from (seed, domain, client, step)."""
        return seeded_generator(*self.key, "step", self.index)

    @property
    def features(self) -> Tensor:
        """Features, (B, D), part of the autograd graph."""
        return self.forward.features

    @property
    def labels(self) -> Tensor:
        """Class indices, (B,)."""
        return self.forward.labels

    @property
    def logits(self) -> Tensor:
        """Logits, (B, C) or (B, 1), part of the autograd graph."""
        logits: Tensor = self.model.head(self.forward.features)
        return logits

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def batch(self) -> HeadBatch:
        """Features and labels of the step's batch with the head."""
        return self.forward.batch

    @property
    def loss(self) -> Tensor:
        """The client's own loss L_e, (): mean cross-entropy (logistic for one logit), plus the L2 term if any."""
        if self._loss is None:
            self._loss = self.batch.loss
        return self.regularized(self._loss)

    def regularized(self, loss: Tensor) -> Tensor:
        """Add the L2 term, if any, to a loss."""
        if self.l2 == 0.0:
            return loss
        squares = torch.stack([parameter.square().sum() for parameter in self.trained.values()]).sum()
        return loss + self.l2 * squares

    def statistic(self, function: Statistic, **given: Tensor | Scalar) -> Tensor:
        """Compute a head statistic of this step's batch, part of the autograd graph."""
        return compute_statistic(function, self.batch, **given)

    def squared_distance(
        self, function: Statistic, reference: Tensor, *, share: Tensor | None = None, **given: Tensor | Scalar
    ) -> Tensor:
        """Compute ||s - reference||^2, (), of a head statistic s of the batch, part of the autograd graph.

        In expectation over batches that is larger than the distance of their mean, by the variance of s. Given a
        ``share`` q, (), such as :meth:`PenaltyScale.share` returns, the variance is left out: (1 - q) <s_1 - reference,
        s_2 - reference> + q ||s - reference||^2, with s_1 and s_2 of the examples at even and at odd places. This can
        be negative. A batch of one example, which has no halves, has the second term alone.
        """
        squared = (self.statistic(function, **given) - reference).square().sum()
        if share is None:
            return squared
        if self.batch.size == 1:
            return share * squared
        first, second = (compute_statistic(function, half, **given) - reference for half in self.batch.halves())
        return torch.lerp((first * second).sum(), squared, share)

    def limited(self, penalty: Tensor) -> Tensor:
        """Scale a penalty down until its gradient is no longer than the loss's, at the head's inputs and parameters.

        The factor is ``min(1, ||dL/dz|| / ||dP/dz||, ||dL/dW|| / ||dP/dW||)``, a constant. z are the batch's features,
        W the head's weight and bias, L is the loss without the L2 term. Ratios are left out where P has no gradient.

        Args:
            penalty: P, (), a function of features, head or both. The result can be differentiated once.

        Raises:
            UsageError: The penalty depends on neither.
        """
        batch = self.batch
        head = [batch.weight] if batch.bias is None else [batch.weight, batch.bias]
        trained = [tensor for tensor in (batch.features, *head) if tensor.requires_grad]
        found = torch.autograd.grad(penalty, trained, retain_graph=True, allow_unused=True)
        gradients = {id(tensor): own for tensor, own in zip(trained, found, strict=True) if own is not None}
        if not gradients:
            raise UsageError(
                "limited: expected a penalty of the step's features or head, got one that changes with neither; leave "
                "`limited = True` out"
            )
        with torch.no_grad():
            of_loss = (batch.basics.mean_residuals @ batch.weight, head_gradient(batch))
            factor = penalty.new_ones(())
            for tensors, loss_gradient in zip(([batch.features], head), of_loss, strict=True):
                own = [gradients[id(tensor)].flatten() for tensor in tensors if id(tensor) in gradients]
                if own:
                    length = torch.cat(own).norm().clamp_min(torch.finfo(penalty.dtype).tiny)
                    factor = torch.minimum(factor, loss_gradient.norm() / length)
            known = [None if own is None else factor * own for own in found]
        if not _is_function_of(trained, penalty):
            return factor * penalty
        limited: Tensor = _KnownGradients.apply(factor * penalty.detach(), known, *trained)
        return limited

    def distances(
        self, *, gradient: Tensor | None = None, hgp: Tensor | None = None, share: Tensor | None = None
    ) -> HeadTerms:
        """Compute ||g - gradient||^2 and ||H[g] - hgp||^2 in one pass with the loss, which :attr:`loss` then reuses.

        ``share`` is as in :meth:`squared_distance`.
        """
        terms = head_objective(self.batch, gradient=gradient, hgp=hgp, share=share)
        self._loss = terms.loss
        return terms


@dataclass
class LocalStep:
    """One local step of a client over all domains that it holds, as a strategy's step rule sees it.

    Attributes:
        model: The client's working model, in training mode.
        batch: Inputs (B, ...) and labels (B,), domain after domain, and the number of examples of each.
        objective: Computes the loss and the objective of a pass over the batch, () each.
        index: Number of the step since the beginning of the run, from 0.
        key: Key of the client's stream of batches: (seed, domain, client).
        made: A pass over the batch that was computed earlier, if any.
        seeded: Context for computing the pass if ``made`` is None, so that later random draws are the same either way.
        recorded: Loss and objective, (2,), of the first call of :meth:`backward`.
    """

    model: HeadedModel
    batch: tuple[Tensor, Tensor, Sequence[int]]
    objective: Callable[[Forward], tuple[Tensor, Tensor]]
    index: int
    key: tuple[str | int, ...] = ()
    made: Forward | None = None
    seeded: Callable[[], AbstractContextManager[None]] = nullcontext
    recorded: Tensor | None = None

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @cached_property
    def generator(self) -> torch.Generator:
        """Generator of the step rule's random numbers, on the CPU, seeded from (seed, domain, client, step)."""
        return seeded_generator(*self.key, "step rule", self.index)

    def run(self, batch: tuple[Tensor, Tensor, Sequence[int]] | None = None) -> Forward:
        """Run a forward pass over the step's batch, or over another batch."""
        inputs, labels, sizes = batch or self.batch
        return run_forward(self.model, inputs, labels, sizes=sizes)

    def backward(self, passes: Iterable[tuple[float, Forward]] = ()) -> None:
        """Add the gradient of the objective at the current parameters to their ``grad``; by default of a plain pass.

        Args:
            passes: Passes in its place, each with the weight of its objective in their sum. With a generator only one
                is in memory at a time.
        """
        made, self.made, seeded, self.seeded = self.made, None, self.seeded, nullcontext
        if not passes:
            with seeded():
                passes = [(1.0, made or self.run())]
        terms = []
        for weight, forward in passes:
            loss, objective = self.objective(forward)
            torch.autograd.backward(objective if weight == 1.0 else weight * objective)
            terms.append(weight * torch.stack([loss, objective]).detach())
        if self.recorded is None:
            self.recorded = torch.stack(terms).sum(0)

    def take_gradient(self) -> dict[str, Tensor]:
        """Return the gradients by name, without parameters that have none, and set all to None."""
        taken = {name: parameter.grad for name, parameter in self.trained.items() if parameter.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return taken

    @contextmanager
    def moved(self, by: Mapping[str, Tensor]) -> Iterator[None]:
        """Shift parameters by the tensors of their names within the block, and restore buffers that it writes to.

        The parameters' own values are not written to: other clients may be reading them.
        """
        here = {name: parameter.data for name, parameter in self.trained.items()}
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        versions = [buffer._version for buffer, _ in buffers]
        for name, move in by.items():
            self.trained[name].data = here[name] + move
        try:
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = here[name]
            if versions != [buffer._version for buffer, _ in buffers]:
                for buffer, value in buffers:
                    buffer.copy_(value)


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients by some tensors have been computed, so that its graph is not gone through again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor) -> Tensor:
        del tensors
        ctx.gradients = gradients
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if own is None else gradient * own for own in ctx.gradients)


def _is_function_of(tensors: Sequence[Tensor], value: Tensor) -> bool:
    """Whether a value's graph leads to no leaf but through the tensors."""
    seen: set[Any] = {get_gradient_edge(tensor)[:2] for tensor in tensors}
    ahead: list[Any] = [get_gradient_edge(value)[:2]]
    while ahead:
        node, output = ahead.pop()
        if node is None or (node, output) in seen:
            continue
        if not node.next_functions:
            return False
        seen.add((node, output))
        ahead += node.next_functions
    return True


def round_steps(config: RunConfig, *, train_size: int, server_round: int) -> range:
    """Number the steps that a client takes in a round, counted from 0 since the beginning of the run.

    These are ``local_steps`` each round or, with ``local_epochs``, ``local_epochs * ceil(N / B)`` for the client's N
    training examples. N counts the examples of all its domains; each domain's part of a batch comes from passes over
    that domain's examples.
    """
    each = config.local_steps
    if config.local_epochs:
        each = config.local_epochs * steps_per_pass(train_size, batch_size=config.batch_size, keeps_rest=True)
    return range((server_round - 1) * each, server_round * each)
