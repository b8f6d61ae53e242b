"""Gradients and Hessians of a classifier head in closed form: no double backward, no C*K x C*K matrix.

Shape suffixes: B batch, D features, C classes, K = D + 1 with the bias column (K = D without a bias).
theta = [W | b] is (C, K), z-hat = [z, 1] is (B, K), P = softmax(z-hat theta^T), R = P - onehot(y), and the loss is the
mean cross-entropy. With one logit the loss is logistic: P = s = sigmoid, and P_i delta_ij - P_i P_j becomes s(1-s).

Every function takes a :class:`HeadBatch`, follows its dtype and device, and is differentiable once by ordinary autograd
with respect to features, weight and bias.

Source: Hemati, Zhang, Estiri, Chen, "Understanding Hessian Alignment for Domain Generalization", ICCV 2023.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedhess.base.transfers import send
from fedhess.curvature.head_batch import Basics, HeadBatch
from fedhess.curvature.lanczos import dominant_eigenvector
from fedhess.curvature.moments import second_moment

PROBE_ELEMENTS = 2**23  # numbers in one chunk of probes: 32 MiB in float32


def head_gradient(batch: HeadBatch) -> Tensor:
    """Compute the gradient of the mean loss by the head's parameters, G = R^T z-hat / B.

    Discloses: of one example its label and all features; of B, sums of features weighted by class, and in the bias
    column the class counts: exactly where the server has zeroed the head, up to the softmax otherwise.

    Returns:
        G, (C, K); the last column is the gradient by the bias, if there is one. May be a cached value: do not write
        into it.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2), torch.zeros(2))
    >>> head_gradient(batch)
    tensor([[ 0.5000,  1.0000,  0.5000],
            [-0.5000, -1.0000, -0.5000]])
    """
    return batch.recall("gradient", lambda: gradient_from(batch.basics))


def gradient_from(basics: Basics) -> Tensor:
    """Compute G, (C, K), from the :class:`Basics` of a batch."""
    return basics.mean_residuals.T @ basics.inputs


def head_hvp(batch: HeadBatch, vector: Tensor) -> Tensor:
    """Multiply the Hessian of the mean loss by a vector, H[V] = S^T z-hat / B.

    U = z-hat V^T are the directions of the logits, S = P*U - P*rowsum(P*U); s(1-s)*U for a logistic head.

    Discloses: of one example all features, no label; of B, sums of features weighted by class probabilities.

    Args:
        batch: The head's inputs, labels and weights.
        vector: V, (C, K). A gradient flows through it too.

    Returns:
        H[V], (C, K).

    Raises:
        ValueError: ``vector`` differs from the head's parameters in shape, dtype or device.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> head_hvp(batch, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([[ 0.2500,  0.5000],
            [-0.2500, -0.5000]])
    """
    batch.check_like_parameters("vector", vector)
    basics = batch.basics
    return basics.curve(basics.inputs @ vector.T).T @ basics.inputs


def hessian_gradient_product(batch: HeadBatch) -> Tensor:
    """Multiply the Hessian of the mean loss by its gradient, H[G] (the HGP of the paper, eq. 10).

    The directions U = z-hat G^T = M R / B come from the Gram matrix M = z-hat z-hat^T where B is the smaller side.

    Discloses: of one example its label and all features; of B, sums of features weighted by class probabilities.

    Returns:
        H[G], (C, K).

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> hessian_gradient_product(batch)
    tensor([[ 1.2500,  2.5000],
            [-1.2500, -2.5000]])
    """
    basics = batch.basics
    if batch.size < 2 * batch.outputs:  # B*B*K + B*B*C against 2*B*C*K multiplications
        directions_BC = basics.inputs @ basics.inputs.T @ basics.mean_residuals
    else:
        directions_BC = basics.inputs @ batch.recall("gradient", lambda: gradient_from(basics)).T
    return basics.curve(directions_BC).T @ basics.inputs


def hessian_diagonal(batch: HeadBatch) -> Tensor:
    """Compute the exact diagonal of the Hessian of the mean loss, (P*(1-P))^T (z-hat*z-hat) / B.

    Discloses: of one example the squares of all features, no label; of B, their sums weighted by class
    probabilities.

    Returns:
        The diagonal, (C, K), non-negative.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> hessian_diagonal(batch)
    tensor([[0.2500, 1.0000],
            [0.2500, 1.0000]])
    """
    inputs_BK, _, probabilities_BC, _ = batch.basics
    return second_moment(probabilities_BC * (1 - probabilities_BC) / batch.size, inputs_BK)


def hutchinson_diagonal(batch: HeadBatch, *, probes: int, generator: torch.Generator) -> Tensor:
    """Estimate the Hessian's diagonal without bias from random signs, mean over probes r of r * H[r].

    Bekas, Kokiopoulou, Saad (2007); the estimator of the paper's Hutchinson method (eq. 11), which draws 100 to 300
    probes one by one through double backward. Here the products of many probes are computed at once, in chunks of
    bounded memory that backward recomputes. :func:`hessian_diagonal` is exact and far cheaper for a linear head.

    Args:
        batch: The head's inputs, labels and weights.
        probes: Number of probes, at least 1.
        generator: Draws the signs, on its own device. Equal seeds draw equal probes for all batches of one (C, K):
            common random numbers, as the domains of a round need. Advanced by ``probes * C * K`` draws.

    Returns:
        The estimate, (C, K). Its error falls like 1/sqrt(probes).

    Raises:
        ValueError: ``probes`` is less than 1.

    >>> batch = HeadBatch(torch.tensor([[2.0]]), torch.tensor([1]), torch.zeros(1, 1))
    >>> hutchinson_diagonal(batch, probes=3, generator=torch.Generator().manual_seed(0))
    tensor([[1.]])
    """
    if probes < 1:
        raise ValueError(f"probes: expected at least 1, got {probes}; the paper draws 100 to 300")
    basics = batch.basics
    chunk = max(1, PROBE_ELEMENTS // (batch.shape[0] * batch.shape[1]))
    estimate_CK = batch.features.new_zeros(batch.shape)
    for first in range(0, probes, chunk):
        signs = draw_signs(min(chunk, probes - first), batch.shape, generator)
        estimate_CK = estimate_CK + checkpoint(_probe_sum, basics, signs, use_reentrant=False)
    return estimate_CK / probes


def draw_signs(probes: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw Rademacher probes, -1 or 1 with equal probability: (probes, *shape), int8, on the generator's device.

    >>> draw_signs(1, (4,), torch.Generator().manual_seed(0))
    tensor([[-1,  1,  1, -1]], dtype=torch.int8)
    """
    bits = torch.randint(0, 2, (probes, *shape), generator=generator, device=generator.device, dtype=torch.int8)
    return bits.mul_(2).sub_(1)


def _probe_sum(basics: Basics, signs: Tensor) -> Tensor:
    """Sum r * H[r] over probes (n, C, K)."""
    count, outputs, width = signs.shape
    inputs_BK = basics.inputs
    probes_NCK = send(signs, inputs_BK.device).to(inputs_BK.dtype)
    directions = inputs_BK @ probes_NCK.view(count * outputs, width).T
    curved_NBC = basics.curve(directions.view(-1, count, outputs).transpose(0, 1))
    images = curved_NBC.transpose(1, 2).reshape(count * outputs, -1) @ inputs_BK
    return (probes_NCK * images.view(count, outputs, width)).sum(0)


def gradient_variance(batch: HeadBatch) -> Tensor:
    """Compute the variance over examples of the head's gradient, (R*R)^T (z-hat*z-hat) / B - G*G.

    The centred second moment that Fishr aligns (Rame, Dancette, Cord, ICML 2022, eq. 4 with 1/B for 1/(B-1)).

    Discloses: of one example nothing; of B, sums of squared features, and of a zeroed head how far each class is
    from half of the batch.

    Returns:
        The variance, (C, K); non-negative up to rounding, zero for B = 1.

    >>> batch = HeadBatch(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), torch.zeros(2, 1))
    >>> gradient_variance(batch)
    tensor([[0.2500],
            [0.2500]])
    """
    basics = batch.basics
    moment_CK = second_moment(basics.mean_residuals.square() * batch.size, basics.inputs)
    return moment_CK - batch.recall("gradient", lambda: gradient_from(basics)).square()


def spectral_distance(batch_a: HeadBatch, batch_b: HeadBatch) -> Tensor:
    """Compute the spectral norm of the difference of two heads' Hessians, ||H_a - H_b||_2, without building either.

    The Hessians act as zero outside the span of the inputs' rows. If there are fewer rows than columns, the inputs are
    first expressed in an orthonormal basis of that span (an isometry, so eigenvalues stay). Lanczos then finds the
    eigenvector v of largest |eigenvalue| of H_a - H_b, and the distance is |v . (H_a - H_b)[v]|. With v held fixed, the
    derivative of this quotient is that of the eigenvalue (Hellmann and Feynman).

    Args:
        batch_a: Head batch of one domain.
        batch_b: Head batch of another; C and K must agree, the number of examples and the weights need not.

    Returns:
        The spectral norm of the difference, (). If several eigenvalues tie, its derivative is that of one.

    Raises:
        ValueError: The heads' parameters differ in shape.

    >>> batch = HeadBatch(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.zeros(2, 2))
    >>> spectral_distance(batch, batch)
    tensor(0.)
    """
    if batch_a.shape != batch_b.shape:
        raise ValueError(f"batch_b: expected a head of shape {batch_a.shape} like batch_a, got {batch_b.shape}")
    with torch.no_grad():
        basics_a, basics_b = batch_a.basics, batch_b.basics
        rows_a, rows_b = basics_a.inputs, basics_b.inputs
        span = torch.cat([rows_a, rows_b]).T
        if span.shape[1] < span.shape[0]:
            basis_KN = torch.linalg.qr(span).Q
            rows_a, rows_b = rows_a @ basis_KN, rows_b @ basis_KN

        def difference(vector: Tensor) -> Tensor:
            image_a = basics_a.curve(rows_a @ vector.T).T @ rows_a
            return image_a - basics_b.curve(rows_b @ vector.T).T @ rows_b

        vector = dominant_eigenvector(difference, rows_a.new_empty(batch_a.outputs, rows_a.shape[1]))
        if span.shape[1] < span.shape[0]:
            vector = vector @ basis_KN.T
    return (vector * (head_hvp(batch_a, vector) - head_hvp(batch_b, vector))).sum().abs()
