"""Head statistics of a batch: closed forms for a linear head, automatic differentiation for any other."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhess.base.errors import strategy_code
from fedhess.curvature import HeadBatch, autodiff
from fedhess.curvature.autodiff import ModuleBatch
from fedhess.models.headed import HeadedModel
from fedhess.settings.run_config import Scalar

# A function of a ``HeadBatch``, and of named tensors and scalars, such as :func:`fedhess.curvature.head_gradient`.
Statistic = Callable[..., Tensor]
# A function of a whole ``Forward`` pass, whose graph it may differentiate; its value has the shape of a vector.
NetworkStatistic = Callable[["Forward"], Tensor]


def head_batch(model: HeadedModel, features: Tensor, labels: Tensor) -> HeadBatch | ModuleBatch:
    """Pair features with the head: closed forms for a linear head, automatic differentiation for any other."""
    head = model.head
    if isinstance(head, nn.Linear):
        return HeadBatch(features, labels, head.weight, head.bias)
    return ModuleBatch(features, labels, head)


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, or mean logistic loss for one logit, ()."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def compute_statistic(function: Statistic, batch: HeadBatch | ModuleBatch, **given: Tensor | Scalar) -> Tensor:
    """Evaluate a statistic of the head, by its automatic counterpart where the head is not linear.

    Args:
        function: The statistic, a function of a ``HeadBatch``.
        batch: The head batch.
        **given: Tensors and scalars; the function is given those it has a parameter for.

    Raises:
        ValueError: The head is not linear and the statistic has no automatic counterpart.
    """
    accepted = {name: value for name, value in given.items() if name in _parameter_names(function)}
    if isinstance(batch, HeadBatch) or getattr(function, "suits_any_head", False):
        return function(batch, **accepted)
    counterpart = autodiff.EQUIVALENT.get(function)
    if counterpart is None:
        raise ValueError(f"{getattr(function, '__name__', function)} needs a linear head (torch.nn.Linear)")
    result: Tensor = counterpart(batch, **accepted)
    return result


def strategy_statistic(
    strategy: str,
    name: str,
    function: Statistic | NetworkStatistic,
    of: "HeadBatch | ModuleBatch | Forward",
    **given: Tensor | Scalar,
) -> Tensor:
    """Evaluate one of a strategy's statistics on a head batch, or on a whole pass, detached from its graph.

    Args:
        strategy: The strategy as the run names it.
        name: The statistic's name.
        function: The statistic.
        of: What it is a function of.
        **given: Tensors and scalars that a statistic of the head takes besides.

    Raises:
        StrategyError: It raised, or returned no tensor.
    """
    with strategy_code(strategy, f"statistic {name!r}", function):
        value = function(of) if isinstance(of, Forward) else compute_statistic(function, of, **given)
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor, got {type(value).__name__}")
        return value.detach()


def suits_any_head(function: Statistic) -> Statistic:
    """Mark a statistic that uses only ``loss``, ``features`` and ``labels`` of its batch, which every head has."""
    function.suits_any_head = True  # type: ignore[attr-defined]
    return function


@suits_any_head
def head_loss(batch: HeadBatch | ModuleBatch) -> Tensor:
    """Return the mean loss of the batch, ()."""
    return batch.loss


@lru_cache(maxsize=256)
def _parameter_names(function: Statistic) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@dataclass
class Forward:
    """A forward pass up to the head.

    Attributes:
        model: The model that made it.
        stamp: Where the model's parameters were and how often they had been written to.
        wrote_buffers: Whether the pass changed buffers of the model (running statistics that are not frozen).
        inputs: (B, ...) inputs of the batch.
        labels: (B,) class indices.
        features: (B, D) features, part of the autograd graph unless gradients were off.
        batch: The features with labels and head.
        parts: The same pass by domain, where the batch holds examples of several; else the pass alone.
    """

    model: HeadedModel
    stamp: tuple[tuple[int, int], ...]
    wrote_buffers: bool
    inputs: Tensor
    labels: Tensor
    features: Tensor
    batch: HeadBatch | ModuleBatch
    parts: list["Forward"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = self.parts or [self]

    def is_made_by(self, model: HeadedModel) -> bool:
        """Whether the model made this pass and its parameters are still what they were."""
        return self.model is model and self.stamp == _stamp(model)

    def graph_bytes(self) -> int:
        """Count the bytes that the autograd graph of the features keeps beside the model's own."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}
        seen, ahead = set(), [self.features.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
            saved = [getattr(node, name) for name in _saved_names(type(node))]
            for value in (*saved, *getattr(node, "saved_tensors", ())):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(tensor, Tensor):
                        storage = tensor.untyped_storage()
                        kept[storage.data_ptr()] = storage.nbytes()
        return sum(size for place, size in kept.items() if place not in own)


@lru_cache(maxsize=256)
def _saved_names(node: type) -> tuple[str, ...]:
    """Name what autograd lets be seen of the values that a node of its graph keeps."""
    return tuple(name for name in vars(node) if name.startswith("_saved_"))


def _stamp(model: HeadedModel) -> tuple[tuple[int, int], ...]:
    return tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())


def run_forward(model: HeadedModel, inputs: Tensor, labels: Tensor, *, sizes: Sequence[int] | None = None) -> Forward:
    """Compute the features of a batch in training mode and pair them with the head.

    Args:
        model: The model.
        inputs: (B, ...).
        labels: (B,).
        sizes: How many examples of each domain follow each other in the batch, where it holds several domains.
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
