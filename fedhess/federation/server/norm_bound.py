"""A bound on the norms of what clients send, relative to the medians of this round and of the rounds before.

A finite number can be as harmful as NaN: a statistic a million times too long decides a mean alone. docs/robust.md
measures how far honest clients are from one another; the default width comes from there.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Sender = TypeVar("Sender")
Sent = TypeVar("Sent")
Norms = Mapping[str, float]  # by what it is the norm of


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all floating-point tensors together, in float64; inf if it overflows."""
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    return math.hypot(*(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in floating))


class NormBound:
    """Rejects norms above ``width`` times the larger of the round's median and the largest median of earlier rounds.

    The median of an even number is the lower one in the middle. In the first round the median of at least three clients
    counts, since two have no majority; later that of two does, but never a single client's own norm. All rounds before
    count, since a batch that is hard for a model that fits the others is as far from them as in the first rounds. A
    reply within the bound of earlier medians passes at once. If only the round's own median can decide, above all in
    the first round, replies are held back until enough norms are known, at most all of them.
    """

    def __init__(self, width: float) -> None:
        self.width = width or math.inf  # 0 is no bound
        self.medians: dict[str, float] = {}  # the largest of the rounds so far, by what was sent

    def screen(
        self,
        replies: Iterable[tuple[Sender, Sent]],
        norms_of: Callable[[Sender, Sent], Norms],
        reject: Callable[[Sender, str], None],
        *,
        asked: int,
    ) -> Iterator[tuple[Sender, Sent]]:
        """Yield the replies within the bound, in their order; call ``reject`` with the sender of any other, and why."""
        seen: dict[str, list[float]] = {}
        accepted: list[Norms] = []
        held: deque[tuple[Sender, Sent, Norms]] = deque()
        for sender, sent in replies:
            norms = norms_of(sender, sent)
            for what, value in norms.items():
                seen.setdefault(what, []).append(value)
            held.append((sender, sent, norms))
            # Norms still to come count as 0, so the median that is known for certain only rises.
            while held and not self._excess(held[0][2], seen, asked):
                accepted.append(held[0][2])
                yield held.popleft()[:2]
        for sender, sent, norms in held:
            if reason := self._excess(norms, seen, 0):
                reject(sender, reason)
            else:
                accepted.append(norms)
                yield sender, sent
        for what in accepted[0] if accepted else ():
            median = lower_median(norms[what] for norms in accepted)
            self.medians[what] = max(self.medians.get(what, 0.0), median)

    def _excess(self, norms: Norms, seen: Mapping[str, list[float]], asked: int) -> str:
        """Describe how a reply exceeds the bound; "" if it does not."""
        for what, value in norms.items():
            median = self.median(what, seen[what] + [0.0] * (asked - len(seen[what])))
            judged = median > 0 or asked > 2  # else there is nothing to compare with
            if judged and value > self.width * median:
                return (
                    f"{what} has norm {value:.3g}, {value / median if median else math.inf:.3g} times the median "
                    f"{median:.3g} of the clients and of the rounds before; more than {self.width:g} is left out "
                    "(--norm-bound)"
                )
        return ""

    def median(self, what: str, of_round: Sequence[float]) -> float:
        """Return the median to compare norms with: the larger of the round's and those before; 0 if there is none."""
        of_past = self.medians.get(what, 0.0)
        return max(of_past, lower_median(of_round)) if len(of_round) > (1 if of_past else 2) else of_past

    def state(self) -> dict[str, Any]:
        """Return what the next round needs, as JSON."""
        return dict(self.medians)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self.medians = dict(state)


def lower_median(values: Iterable[float]) -> float:
    """Return the median, of an even number of values the lower of the two in the middle.

    >>> lower_median([4.0, 1.0, 9.0, 2.0])
    2.0
    """
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]
