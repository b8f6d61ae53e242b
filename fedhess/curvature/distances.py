"""Squared distances of a head's statistics to fixed references, with the loss, at the price of few passes.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).

The objective of a client is L + beta * ||G - r_g||^2 + alpha * ||H[G] - r_h||^2 with constant references. A step asks
for all three terms at once, which share logits, products and one backward pass:

    terms = head_objective(batch, gradient=reference_g, hgp=reference_h)
    (terms.loss + beta * terms.gradient_distance + alpha * terms.hgp_distance).backward()

Call it on the same :class:`HeadBatch` that answered the round's exchanges, and what those computed is used again. With
a zero coefficient leave the reference out: without references the loss is torch's own, bit for bit a plain ERM step.

**Two forms.** The *direct* one builds G and H[G]. The *Gram* one never does: with M = z-hat z-hat^T, U = M R / B,
S = curve(U) and A = z-hat r^T,

    ||G - r_g||^2    = <R, U> / B - 2 <R, A_g> / B + ||r_g||^2
    ||H[G] - r_h||^2 = <S, M S> / B^2 - 2 <S, A_h> / B + ||r_h||^2

which leaves two products of B*C*K multiplications a reference (A, and R r in backward) against three to six. The form
follows from the shape alone (:func:`gram_is_cheaper`), never from what happens to be remembered, so that a client which
lost its memory ends with the same bits.

**Rounding.** The expansion subtracts numbers of the size of ||r||^2. Its gradient does not suffer: it is built from
U - A = z-hat (G - r)^T, whose error is of the order eps |z-hat| |r|, as in the direct form. The value has an absolute
error of about eps (||G||^2 + ||r||^2), so a distance below :data:`NOISE` eps times that sum cannot be told from zero
and is given as exactly 0: never negative, and 0 where domains are identical. In float32 this hides relative distances
||G - r|| / ||r|| under about 0.0014; their gradient is still followed. The direct form has no such floor.
"""

from typing import NamedTuple, cast

from torch import Tensor

from fedhess.curvature.closed_form import HeadBatch, hessian_diagonal
from fedhess.curvature.head_objective import NOISE, HeadNode

__all__ = [
    "NOISE",
    "HeadTerms",
    "alignment_distances",
    "diagonal_distance",
    "gradient_distance",
    "gram_is_cheaper",
    "head_objective",
    "hgp_distance",
]


class HeadTerms(NamedTuple):
    """The three terms of a client's objective, each ()."""

    loss: Tensor
    gradient_distance: Tensor
    hgp_distance: Tensor


def head_objective(
    batch: HeadBatch, *, gradient: Tensor | None = None, hgp: Tensor | None = None, gram: bool | None = None
) -> HeadTerms:
    """Compute loss, ||G - gradient||^2 and ||H[G] - hgp||^2 from one forward and with one shared backward.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Fixed reference of the gradient, (C, K), or None to leave its term at zero.
        hgp: Fixed reference of the Hessian-gradient product, (C, K), or None to leave its term at zero.
        gram: Force the Gram form (True) or the direct form (False); by default :func:`gram_is_cheaper` decides.

    Returns:
        The terms, each (), differentiable once by features, weight and bias. Without references the loss is torch's
        own cross-entropy and its gradient is bit for bit that of a plain step.

    Raises:
        ValueError: If a reference does not look like the head's parameters.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> head_objective(batch, gradient=torch.zeros(2, 2), hgp=torch.zeros(2, 2)).hgp_distance
    tensor(15.6250)
    """
    for name, reference in (("gradient reference", gradient), ("hgp reference", hgp)):
        if reference is not None:
            batch.check_like_parameters(name, reference)
    if gradient is None and hgp is None:
        zero = batch.features.new_zeros(())
        return HeadTerms(batch.loss, zero, zero)
    if gram is None:
        gram = gram_is_cheaper(batch, hgp=hgp is not None)
    fixed = [None if reference is None else reference.detach() for reference in (gradient, hgp)]
    outputs = HeadNode.apply(batch.features, batch.weight, batch.bias, *fixed, batch, gram)
    return HeadTerms(*cast("tuple[Tensor, Tensor, Tensor]", outputs))


def alignment_distances(batch: HeadBatch, *, gradient: Tensor, hgp: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ||G - gradient||^2 and ||H[G] - hgp||^2 in one pass.

    If the loss is wanted too, :func:`head_objective` gives it almost for nothing.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Fixed reference of the gradient, (C, K).
        hgp: Fixed reference of the Hessian-gradient product, (C, K).

    Returns:
        Both squared Frobenius distances, each ().

    Raises:
        ValueError: If a reference does not look like the head's parameters.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> alignment_distances(batch, gradient=torch.zeros(2, 2), hgp=torch.zeros(2, 2))
    (tensor(2.5000), tensor(15.6250))
    """
    terms = head_objective(batch, gradient=gradient, hgp=hgp)
    return terms.gradient_distance, terms.hgp_distance


def gradient_distance(batch: HeadBatch, reference: Tensor) -> Tensor:
    """Compute ||G - reference||^2, the squared Frobenius distance of the head's gradient to a fixed reference.

    Args:
        batch: The head's inputs, labels and weights.
        reference: (C, K); held fixed, no gradient flows to it.

    Returns:
        The distance, ().

    Raises:
        ValueError: If the reference does not look like the head's parameters.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> gradient_distance(batch, torch.zeros(2, 2))
    tensor(2.5000)
    """
    return head_objective(batch, gradient=reference).gradient_distance


def hgp_distance(batch: HeadBatch, reference: Tensor) -> Tensor:
    """Compute ||H[G] - reference||^2, the squared Frobenius distance of the HGP to a fixed reference.

    Args:
        batch: The head's inputs, labels and weights.
        reference: (C, K); held fixed, no gradient flows to it.

    Returns:
        The distance, ().

    Raises:
        ValueError: If the reference does not look like the head's parameters.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> hgp_distance(batch, torch.zeros(2, 2))
    tensor(15.6250)
    """
    return head_objective(batch, hgp=reference).hgp_distance


def diagonal_distance(batch: HeadBatch, reference: Tensor) -> Tensor:
    """Compute ||diag H - reference||^2, the squared Frobenius distance of the exact diagonal to a fixed reference.

    Args:
        batch: The head's inputs, labels and weights.
        reference: (C, K); held fixed, no gradient flows to it.

    Returns:
        The distance, ().

    Raises:
        ValueError: If the reference does not look like the head's parameters.

    >>> import torch
    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> diagonal_distance(batch, torch.zeros(2, 2))
    tensor(2.1250)
    """
    batch.check_like_parameters("diagonal reference", reference)
    return (hessian_diagonal(batch) - reference.detach()).square().sum()


def gram_is_cheaper(batch: HeadBatch, *, hgp: bool) -> bool:
    """Decide by shape whether the Gram form costs less than the direct one.

    Multiplications, forward and backward to every input, beyond those of the plain loss:

    ============ ========================= ======================
    references   direct                    Gram
    ============ ========================= ======================
    gradient     3 BCK                     2 BCK + 2 BBK + 2 BBC
    both, or hgp 9 BCK                     4 BCK + 2 BBK + 7 BBC
    ============ ========================= ======================

    Args:
        batch: Gives B, C and K.
        hgp: Whether the HGP's distance is asked for.

    Returns:
        Whether to use the Gram form.

    >>> import torch
    >>> features, labels = torch.zeros(32, 2048), torch.zeros(32, dtype=torch.int64)
    >>> [gram_is_cheaper(HeadBatch(features, labels, torch.zeros(C, 2048)), hgp=True) for C in (7, 345)]
    [False, True]
    """
    size = batch.size
    outputs, width = batch.shape
    spared, mixed = (5, 7) if hgp else (1, 2)
    return 2 * size * width + mixed * size * outputs < spared * outputs * width
