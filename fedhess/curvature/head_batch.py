"""One batch as the classifier head sees it: features, labels and the head's weights, with what they imply.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from fedhess.curvature.remembering import Memory

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


class Basics(NamedTuple):
    """What every statistic of a head starts from.

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


@dataclass(frozen=True, eq=False)
class HeadBatch:
    """Hold the inputs, labels and weights of a linear head, and remember what was computed from them.

    The head is softmax cross-entropy over C classes; a one-row weight makes it logistic, with labels 0 and 1.

    Values that several statistics share are remembered while no autograd graph is being recorded, so a client that
    keeps the batch between the exchanges of a round and its training step computes each once. They are dropped as soon
    as autograd's version counters show that a tensor was changed in place (``optimizer.step()``, ``load_state_dict``);
    writing through ``.data`` goes unseen, as it does for autograd itself. Remembering never changes a result, not even
    in its last bit.

    Args:
        features: Inputs of the head, (B, D), floating point.
        labels: Class indices, (B,), int64, in [0, C) or in {0, 1} for a logistic head.
        weight: (C, D), or (1, D) for a logistic head; dtype and device of ``features``.
        bias: (C,), or None.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, or a label is out of range (labels are checked
            on the CPU only: elsewhere the check would wait for the device).

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2), torch.zeros(2))
    >>> batch.basics.mean_residuals
    tensor([[ 0.5000, -0.5000]])
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _memory: Memory = field(default_factory=Memory, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_head(self.features, self.weight, self.bias)
        _check_labels(self.labels, self.features, self.outputs)

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
        return self.weight.shape[0] == 1

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (C, K) of the parameters theta = [W | b] and of every statistic."""
        rows, columns = self.weight.shape
        return rows, columns + (self.bias is not None)

    @property
    def requires_grad(self) -> bool:
        """Whether any of features, weight and bias requires a gradient."""
        return any(tensor.requires_grad for tensor in self._sources())

    @property
    def basics(self) -> Basics:
        """Inputs, logits, probabilities and residuals."""
        return self.recall("basics", self._basics)

    @property
    def gram(self) -> Tensor:
        """M = z-hat z-hat^T, (B, B)."""
        return self.recall("gram", lambda: self.basics.inputs @ self.basics.inputs.T)

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy, or mean logistic loss for a one-logit head, (): exactly torch's own losses."""
        logits_BC = self.basics.logits
        if self.is_logistic:
            targets_B = self.labels.to(logits_BC.dtype)
            return functional.binary_cross_entropy_with_logits(logits_BC.squeeze(1), targets_B)
        return functional.cross_entropy(logits_BC, self.labels)

    def project(self, vector: Tensor) -> Tensor:
        """Compute the directions z-hat V^T of the logits; the last is remembered: a round asks for one reference twice.

        Args:
            vector: V, (C, K).

        Returns:
            (B, C).
        """
        return self.recall("projection", lambda: self.basics.inputs @ vector.T, of=vector)

    def curve(self, directions: Tensor) -> Tensor:
        """Multiply by the loss's Hessian in each example's logits, softmax: P*U - P*rowsum(P*U); logistic: s(1-s)*U.

        Args:
            directions: U, (..., B, C).

        Returns:
            S, of the same shape.
        """
        probabilities_BC = self.basics.probabilities
        if self.is_logistic:
            return probabilities_BC * (1 - probabilities_BC) * directions
        products = probabilities_BC * directions
        return torch.addcmul(products, probabilities_BC, products.sum(-1, keepdim=True), value=-1)

    def check_like_parameters(self, name: str, tensor: Tensor) -> None:
        """Raise unless a tensor looks like the head's parameters.

        Args:
            name: What the caller calls it.
            tensor: A vector or reference of the shape (C, K).

        Raises:
            ValueError: If shape, dtype or device differ from those of theta = [W | b].
        """
        if tensor.shape != self.shape or tensor.dtype != self.weight.dtype or tensor.device != self.weight.device:
            raise ValueError(
                f"{name}: expected {self.weight.dtype} of shape {self.shape} on {self.weight.device} like the head's "
                f"[weight | bias], got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; take it from "
                "the same head, with the bias as the last column"
            )

    def recall(self, name: str, compute: Callable[[], Value], *, of: Tensor | None = None) -> Value:
        """Return ``compute()``, or what it gave before if nothing has changed and no graph is being recorded.

        Args:
            name: What is computed.
            compute: Computes it from this batch and ``of`` alone.
            of: Another tensor that the value depends on; on the CPU an equal one counts as the same.

        Returns:
            Part of the autograd graph exactly when one is being recorded. Not to be written into.
        """
        return self._memory.recall(name, compute, self._sources(), of)

    def _sources(self) -> tuple[Tensor, ...]:
        known = (self.features, self.labels, self.weight)
        return known if self.bias is None else (*known, self.bias)

    def _basics(self) -> Basics:
        features, labels_B1 = self.features, self.labels.unsqueeze(1)
        inputs_BK = features
        if self.bias is not None:
            inputs_BK = torch.cat([features, features.new_ones(self.size, 1)], dim=1)
        logits_BC = functional.linear(features, self.weight, self.bias)
        if self.is_logistic:
            probabilities_BC = logits_BC.sigmoid()
            residuals_BC = probabilities_BC - labels_B1
        else:
            probabilities_BC = logits_BC.softmax(1)
            residuals_BC = probabilities_BC.scatter_add(1, labels_B1, features.new_full((self.size, 1), -1.0))
        return Basics(inputs_BK, logits_BC, probabilities_BC, residuals_BC / self.size)


def _check_head(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if features.ndim != 2 or features.shape[0] == 0 or not features.is_floating_point():
        raise ValueError(
            f"features: expected floating point of shape (B, D) with B >= 1, got {features.dtype} of shape "
            f"{tuple(features.shape)}; pass the head's inputs, flattened to one row an example"
        )
    if weight.ndim != 2 or weight.shape[0] == 0 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight: expected shape (C, {features.shape[1]}) to fit features of shape {tuple(features.shape)}, got "
            f"{tuple(weight.shape)}; pass the linear head's own weight, not its transpose"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias: expected shape ({weight.shape[0]},) to fit weight of shape {tuple(weight.shape)}, got "
            f"{tuple(bias.shape)}; pass None for a head without a bias"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != features.dtype or tensor.device != features.device):
            raise ValueError(
                f"{name}: expected {features.dtype} on {features.device} like the features, got {tensor.dtype} on "
                f"{tensor.device}; convert the features or move the head first"
            )


def _check_labels(labels: Tensor, features: Tensor, outputs: int) -> None:
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64 or labels.device != features.device:
        raise ValueError(
            f"labels: expected int64 of shape ({features.shape[0]},) on {features.device}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)} on {labels.device}; pass one class index an example (labels.long())"
        )
    if labels.device.type == "cpu":
        low, high = torch.aminmax(labels)
        classes = max(outputs, 2)
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels: expected values from 0 to {classes - 1} for a head with {outputs} output(s), got "
                f"{int(low)} to {int(high)}; check the class count of the head"
            )
