"""Squared distances of a head's statistics to fixed references, with the loss, in few passes.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).

The objective of a client is L + beta * ||G - r_g||^2 + alpha * ||H[G] - r_h||^2 with constant references, and a step
computes all three terms at once:

    terms = head_objective(batch, gradient=reference_g, hgp=reference_h)
    (terms.loss + beta * terms.gradient_distance + alpha * terms.hgp_distance).backward()

**Two forms.** The *direct* one builds G and H[G]. The *Gram* one never does: with M = z-hat z-hat^T, U = M R / B,
S = curve(U) / B and A = z-hat r^T,

    ||G - r_g||^2    = <R, U> / B - 2 <R, A_g> / B + ||r_g||^2
    ||H[G] - r_h||^2 = <S, M S> - 2 <S, A_h> + ||r_h||^2

The halves of a corrected distance have blocks of the same M and A: they cost no further product of size K.

:func:`gram_is_cheaper` chooses by shape alone, so that equal inputs give equal bits.

**Rounding.** The expansion subtracts numbers of the size of ||r||^2. Its gradient does not suffer: it is built from
U - A = z-hat (G - r)^T, whose error is of the order eps |z-hat| |r|, as in the direct form. The value has an absolute
error of about eps (||G||^2 + ||r||^2), so a distance below :data:`NOISE` eps times that sum cannot be distinguished
from zero and is returned as exactly 0. In float32 this hides relative distances ||G - r|| / ||r|| under about 0.0014;
their gradient is still followed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedhess.curvature.closed_form import gradient_from
from fedhess.curvature.head_batch import Basics, HeadBatch, mean_loss

NOISE = 8.0  # in eps * (||G||^2 + ||r||^2): measured errors of an expanded distance are up to 1.5


class HeadTerms(NamedTuple):
    """The three terms of a client's objective, each ()."""

    loss: Tensor
    gradient_distance: Tensor
    hgp_distance: Tensor


def head_objective(
    batch: HeadBatch,
    *,
    gradient: Tensor | None = None,
    hgp: Tensor | None = None,
    share: Tensor | None = None,
    gram: bool | None = None,
) -> HeadTerms:
    """Compute loss, ||G - gradient||^2 and ||H[G] - hgp||^2 from one forward pass of the head.

    Args:
        batch: The head's inputs, labels and weights.
        gradient: Fixed reference of the gradient, (C, K), or None to leave its term at zero.
        hgp: Fixed reference of the Hessian-gradient product, (C, K), or None to leave its term at zero.
        share: Part of the distances that is the batch's, (); by default all of it. In the rest, <G_1 - gradient, G_2 -
            gradient> and <H_1[G_1] - hgp, H_2[G_2] - hgp> of the examples at even and at odd places take its place,
            and nothing does in a batch of one example.
        gram: Force the Gram form (True) or the direct form (False); by default :func:`gram_is_cheaper` decides.

    Returns:
        The terms, each (), differentiable once by features, weight and bias. The loss is torch's own cross-entropy.

    Raises:
        ValueError: A reference differs from the head's parameters in shape, dtype or device.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> head_objective(batch, gradient=torch.zeros(2, 2), hgp=torch.zeros(2, 2)).hgp_distance
    tensor(15.6250)
    """
    given = {"gradient": gradient, "hgp": hgp}
    references = {name: reference.detach() for name, reference in given.items() if reference is not None}
    for name, reference in references.items():
        batch.check_like_parameters(f"{name} reference", reference)
    basics = batch.basics
    loss, zero = mean_loss(basics.logits, batch.labels), basics.logits.new_zeros(())
    if not references:
        return HeadTerms(loss, zero, zero)
    in_gram = gram_is_cheaper(batch, hgp=hgp is not None) if gram is None else gram
    squares, products = (_expanded if in_gram else _direct)(
        basics, references, halves=share is not None and batch.size > 1
    )
    if share is not None:
        squares = {name: torch.lerp(products.get(name, zero), square, share) for name, square in squares.items()}
    return HeadTerms(loss, squares.get("gradient", zero), squares.get("hgp", zero))


def gram_is_cheaper(batch: HeadBatch, *, hgp: bool) -> bool:
    """Return whether the Gram form takes fewer multiplications than the direct one, forward and backward.

    ============ ========= ======================
    references   direct    Gram
    ============ ========= ======================
    gradient     3 BCK     2 BCK + 3 BBK + 3 BBC
    both, or hgp 9 BCK     4 BCK + 3 BBK + 6 BBC
    ============ ========= ======================

    >>> features, labels = torch.zeros(32, 2048), torch.zeros(32, dtype=torch.int64)
    >>> [gram_is_cheaper(HeadBatch(features, labels, torch.zeros(C, 2048)), hgp=True) for C in (7, 345)]
    [False, True]
    """
    size, (outputs, width) = batch.size, batch.shape
    spared, mixed = (5, 6) if hgp else (1, 3)
    return 3 * size * width + mixed * size * outputs < spared * outputs * width


Terms = tuple[dict[str, Tensor], dict[str, Tensor]]  # ||s - r||^2 and <s_1 - r, s_2 - r>, by the reference's name


def _direct(basics: Basics, references: Mapping[str, Tensor], *, halves: bool) -> Terms:
    """Compute the squared distances and, if asked for, the products of the halves' differences in the direct form."""
    squares = {name: _square(difference) for name, difference in _differences(basics, references).items()}
    if not halves:
        return squares, {}
    first, second = (_differences(half, references) for half in basics.halves())
    return squares, {name: (first[name] * second[name]).sum() for name in references}


def _differences(basics: Basics, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return G - r_g and H[G] - r_h, (C, K), by the names of the references."""
    own_CK = {"gradient": gradient_from(basics)}
    if "hgp" in references:
        own_CK["hgp"] = basics.curve(basics.inputs @ own_CK["gradient"].T).T @ basics.inputs
    return {name: own_CK[name] - reference_CK for name, reference_CK in references.items()}


def _expanded(basics: Basics, references: Mapping[str, Tensor], *, halves: bool) -> Terms:
    """Compute the same in the Gram form; a square below the noise is 0, with the distance's own gradient."""
    inputs_BK = basics.inputs
    gram_BB = inputs_BK @ inputs_BK.T
    onto_BC = {name: inputs_BK @ reference_CK.T for name, reference_CK in references.items()}
    norms = {name: _square(reference_CK) for name, reference_CK in references.items()}
    directions_BC = gram_BB @ basics.mean_residuals
    squares = {}
    for name, left_BC in _factors(basics, directions_BC, references).items():
        images_BC = directions_BC if name == "gradient" else gram_BB @ left_BC
        own, other = (left_BC * images_BC).sum(), norms[name]
        distance = own - 2 * (left_BC * onto_BC[name]).sum() + other
        noise = NOISE * torch.finfo(distance.dtype).eps * (own + other)
        squares[name] = distance - torch.where(distance > noise, torch.zeros_like(distance), distance).detach()
    if not halves:
        return squares, {}
    even, odd = slice(0, None, 2), slice(1, None, 2)
    first_BC, second_BC = (
        _factors(half, gram_BB[part, part] @ half.mean_residuals, references)
        for half, part in zip(basics.halves(), (even, odd), strict=True)
    )
    products = {}
    for name, other in norms.items():
        first, second = first_BC[name], second_BC[name]
        crossed = (first * onto_BC[name][even]).sum() + (second * onto_BC[name][odd]).sum()
        products[name] = (first * (gram_BB[even, odd] @ second)).sum() - crossed + other
    return squares, products


def _factors(basics: Basics, directions_BC: Tensor, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return left, (B, C), of G = left^T z-hat and H[G] = left^T z-hat, by the names of the references."""
    left_BC = {"gradient": basics.mean_residuals}
    if "hgp" in references:
        left_BC["hgp"] = basics.curve(directions_BC)
    return {name: left_BC[name] for name in references}


def _square(matrix: Tensor) -> Tensor:
    """Squared Frobenius norm, row by row: one sum over 10^6 entries would lose hundreds of eps."""
    rows: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return rows.square().sum()
