"""One batch as the classifier head sees it: features, labels, the head's weights, and values derived from them.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


class Basics(NamedTuple):
    """Intermediate values that every statistic of a head starts from.

    Attributes:
        inputs: z-hat = [z, 1], (B, K): the features with the bias column, or the features alone without a bias.
        logits: z-hat theta^T, (B, C).
        probabilities: P = softmax(logits), (B, C); the sigmoid, (B, 1), for a logistic head.
        mean_residuals: R' = (P - onehot(labels)) / B, (B, C): the derivative of the mean loss by the logits.
    """

    inputs: Tensor
    logits: Tensor
    probabilities: Tensor
    mean_residuals: Tensor

    def halves(self) -> list["Basics"]:
        """Return those of the examples at even and of the examples at odd places."""
        size = len(self.inputs)
        parts = [Basics(*(column[start::2] for column in self)) for start in (0, 1)]
        return [own._replace(mean_residuals=own.mean_residuals * (size / len(own.inputs))) for own in parts]

    def curve(self, directions: Tensor) -> Tensor:
        """Multiply directions U, (..., B, C), by the mean loss's Hessian in the logits.

        Softmax: (P*U - P*rowsum(P*U)) / B; logistic: s(1-s)*U / B.
        """
        probabilities_BC = self.probabilities
        if probabilities_BC.shape[1] == 1:
            return probabilities_BC * (1 - probabilities_BC) * directions / len(probabilities_BC)
        products = probabilities_BC * directions
        curved = torch.addcmul(products, probabilities_BC, products.sum(-1, keepdim=True), value=-1)
        return curved / len(probabilities_BC)


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute torch's mean cross-entropy of logits (B, C), or its mean logistic loss of logits (B, 1): ()."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


@dataclass(frozen=True, eq=False)
class HeadBatch:
    """Hold the inputs, labels and weights of a linear head.

    The head is softmax cross-entropy over C classes; a one-row weight makes it logistic, with labels 0 and 1. Values
    that several statistics share are cached while no autograd graph is recorded, until autograd's version counters show
    that a tensor was written to. Caching changes no bit of a result.

    Args:
        features: Inputs of the head, (B, D), floating point.
        labels: Class indices, (B,), int64, in [0, C) or in {0, 1} for a logistic head.
        weight: (C, D), or (1, D) for a logistic head; dtype and device of ``features``.
        bias: (C,), or None.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together, or a label is out of range (checked on the CPU only:
            elsewhere the check would wait for the device).

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2), torch.zeros(2))
    >>> batch.basics.mean_residuals
    tensor([[ 0.5000, -0.5000]])
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _memory: dict[str, tuple[Any, list[int]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        features, labels, weight, bias = self.features, self.labels, self.weight, self.bias
        floats = (features, weight) if bias is None else (features, weight, bias)
        fits = (
            features.ndim == weight.ndim == 2
            and features.shape[1] == weight.shape[1]
            and min(len(features), len(weight)) > 0
            and (bias is None or bias.shape == weight.shape[:1])
            and labels.shape == features.shape[:1]
            and labels.dtype == torch.int64
            and all(tensor.dtype == features.dtype and tensor.is_floating_point() for tensor in floats)
            and all(tensor.device == features.device for tensor in self._sources)
        )
        if not fits:
            names = ("features", "labels", "weight", "bias")
            got = (f"{n} {tuple(t.shape)} {t.dtype} on {t.device}" for n, t in zip(names, self._sources, strict=False))
            raise ValueError(
                "expected features (B, D), labels (B,) of int64, weight (C, D) and bias (C,) or None, with B >= 1, of "
                f"one floating-point dtype and on one device; got {', '.join(got)}"
            )
        if labels.device.type == "cpu":
            low, high = map(int, torch.aminmax(labels))
            classes = max(self.outputs, 2)
            if low < 0 or high >= classes:
                raise ValueError(
                    f"labels: expected values from 0 to {classes - 1} for a head with {self.outputs} output(s), got "
                    f"{low} to {high}; check the class count of the head"
                )

    @property
    def size(self) -> int:
        """Number of examples, B."""
        return self.features.shape[0]

    @property
    def outputs(self) -> int:
        """Number of logits: C, or 1 for a logistic head."""
        return self.weight.shape[0]

    @property
    def is_logistic(self) -> bool:
        """Whether the head has one logit."""
        return self.outputs == 1

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (C, K) of the parameters theta = [W | b] and of every statistic."""
        rows, columns = self.weight.shape
        return rows, columns + (self.bias is not None)

    def halves(self) -> tuple["HeadBatch", "HeadBatch"]:
        """Return the examples at even and at odd places as batches of their own, part of the same autograd graph."""
        even, odd = (
            HeadBatch(self.features[start::2], self.labels[start::2], self.weight, self.bias) for start in (0, 1)
        )
        return even, odd

    @property
    def basics(self) -> Basics:
        """Inputs, logits, probabilities and residuals."""
        return self.recall("basics", self._basics)

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy, or mean logistic loss for a one-logit head, (): exactly torch's own losses."""
        # Nothing is cached under autograd: compute logits only (C=345, D=2048, B=32: 0.91 of a step behind an MLP).
        logits_BC = self._logits() if self._is_recorded else self.basics.logits
        return mean_loss(logits_BC, self.labels)

    @property
    def _is_recorded(self) -> bool:
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._sources)

    def _logits(self) -> Tensor:
        return functional.linear(self.features, self.weight, self.bias)

    def check_like_parameters(self, name: str, tensor: Tensor) -> None:
        """Raise ValueError unless a tensor has shape (C, K), dtype and device of theta = [W | b]."""
        if tensor.shape != self.shape or tensor.dtype != self.weight.dtype or tensor.device != self.weight.device:
            raise ValueError(
                f"{name}: expected {self.weight.dtype} of shape {self.shape} on {self.weight.device} like the head's "
                f"[weight | bias], got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; take it from "
                "the same head, with the bias as the last column"
            )

    def recall(self, name: str, compute: Callable[[], Value]) -> Value:
        """Return ``compute()``, or what it returned before if no tensor was written to since; for reading only."""
        sources = self._sources
        if self._is_recorded or torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in sources):
            return compute()
        if name not in self._memory or self._memory[name][1] != _versions(sources, self._memory[name][0]):
            value = compute()
            self._memory[name] = value, _versions(sources, value)
        remembered: Value = self._memory[name][0]
        return remembered

    @property
    def _sources(self) -> tuple[Tensor, ...]:
        known = (self.features, self.labels, self.weight)
        return known if self.bias is None else (*known, self.bias)

    def _basics(self) -> Basics:
        features, labels_B1 = self.features, self.labels.unsqueeze(1)
        inputs_BK = features
        if self.bias is not None:
            inputs_BK = torch.cat([features, features.new_ones(self.size, 1)], dim=1)
        logits_BC = self._logits()
        if self.is_logistic:
            probabilities_BC = logits_BC.sigmoid()
            residuals_BC = probabilities_BC - labels_B1
        else:
            probabilities_BC = logits_BC.softmax(1)
            residuals_BC = probabilities_BC.scatter_add(1, labels_B1, features.new_full((self.size, 1), -1.0))
        return Basics(inputs_BK, logits_BC, probabilities_BC, residuals_BC / self.size)


def _versions(sources: tuple[Tensor, ...], value: Tensor | tuple[Tensor, ...]) -> list[int]:
    values = (value,) if isinstance(value, Tensor) else value
    return [tensor._version for tensor in (*sources, *values)] + [tensor.data_ptr() for tensor in sources]
