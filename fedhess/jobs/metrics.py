"""Metrics of a classifier, computed from the counts of its predictions in rows of rounds.jsonl.

``confusion`` is sparse: ``[label, prediction, examples]`` for every pair that occurs, with classes as indices.
``calibration`` has 15 lists ``[examples, right, confidence]``. List b covers the examples whose confidence (the
probability of the predicted class) is in (b/15, (b+1)/15]: their number, the number of correct predictions, and the sum
of their confidences. Counts of several clients or trials are added before a metric is computed.
"""

from collections.abc import Sequence

Confusion = Sequence[Sequence[int]]
Calibration = Sequence[Sequence[float]]


def accuracy(confusion: Confusion) -> float | None:
    """Return the share of examples that are predicted right, in [0, 1]; None where there is no example.

    >>> accuracy([[0, 0, 3], [1, 0, 1]])
    0.75
    """
    total = sum(count for _, _, count in confusion)
    return sum(count for label, guess, count in confusion if label == guess) / total if total else None


def class_accuracies(confusion: Confusion, *, classes: int) -> list[float | None]:
    """Compute the accuracy on the examples of each class (its recall): n_cc / sum_k n_ck.

    Returns:
        By class, in [0, 1]; None for a class without examples.

    >>> class_accuracies([[0, 0, 3], [0, 1, 1], [1, 0, 2]], classes=3)
    [0.75, 0.0, None]
    """
    right, total = [0] * classes, [0] * classes
    for label, guess, count in confusion:
        total[label] += count
        right[label] += count if label == guess else 0
    return [r / n if n else None for r, n in zip(right, total, strict=True)]


def balanced_accuracy(confusion: Confusion, *, classes: int) -> float | None:
    """Average the accuracies on the classes with equal weights: (1/C') sum_c n_cc / sum_k n_ck.

    C' is the number of classes that have examples; other classes are left out. Source: Brodersen, Ong, Stephan and
    Buhmann, "The balanced accuracy and its posterior distribution", ICPR 2010, for two classes; for several it is the
    macro-averaged recall.

    >>> balanced_accuracy([[0, 0, 9], [1, 0, 1], [1, 1, 1]], classes=3)
    0.75
    """
    present = [value for value in class_accuracies(confusion, classes=classes) if value is not None]
    return sum(present) / len(present) if present else None


def worst_class_accuracy(confusion: Confusion, *, classes: int) -> float | None:
    """Return the accuracy on the class where it is lowest; classes without examples are left out.

    >>> worst_class_accuracy([[0, 0, 9], [1, 0, 1], [1, 1, 1]], classes=3)
    0.5
    """
    present = [value for value in class_accuracies(confusion, classes=classes) if value is not None]
    return min(present, default=None)


def calibration_error(calibration: Calibration) -> float | None:
    r"""Compute the expected calibration error: sum_b (n_b / n) \|acc(b) - conf(b)\|.

    acc(b) is the share of a bin's n_b examples that are predicted right, conf(b) their mean confidence. Source: Guo,
    Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 5, with M = 15 bins of
    equal width as in their experiments.

    Returns:
        In [0, 1]; None where there is no example.

    >>> calibration_error([[4, 1, 2.0], [0, 0, 0.0], [4, 4, 4.0]])
    0.125
    """
    total = sum(count for count, _, _ in calibration)
    # (n_b / n) |right_b / n_b - confidence_b / n_b|, with n_b cancelled: an empty bin adds nothing.
    return sum(abs(right - sure) for _, right, sure in calibration) / total if total else None


def add_confusions(counts: Sequence[Confusion]) -> list[list[int]]:
    """Add counts by label and prediction, in the order of labels, then predictions.

    >>> add_confusions([[[0, 0, 3]], [[0, 0, 1], [0, 1, 2]]])
    [[0, 0, 4], [0, 1, 2]]
    """
    found: dict[tuple[int, int], int] = {}
    for confusion in counts:
        for label, guess, count in confusion:
            found[label, guess] = found.get((label, guess), 0) + count
    return [[label, guess, count] for (label, guess), count in sorted(found.items())]


def add_calibrations(counts: Sequence[Calibration]) -> list[list[float]]:
    """Add counts bin by bin.

    >>> add_calibrations([[[1, 1, 0.75]], [[2, 0, 1.25]]])
    [[3, 1, 2.0]]
    """
    return [[sum(column) for column in zip(*bins, strict=True)] for bins in zip(*counts, strict=True)]
