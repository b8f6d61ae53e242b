"""Errors that a user can correct, and the nearest-name advice that goes with them."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class UsageError(Exception):
    """A user's mistake: the commands print its message and exit with status 2, without a traceback.

    The message says what was expected, what came and what to do next.
    """


class StrategyError(UsageError):
    """The code of a strategy, a model or a benchmark raised an exception, or returned something invalid.

    ``__cause__`` is the exception, if the code raised it in this process.
    """


class FederationError(RuntimeError):
    """A round could not be completed: too few clients answered. The message names clients, phase and reasons."""


class DivergedError(FederationError):
    """Training produced values that are not finite. Continuing from the last round would produce them again."""


class StorageError(Exception):
    """Results could not be written because the disk is full or not writable; the command is not at fault."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """List the known names, the nearest to ``name`` first, and suggest the nearest if it is close.

    >>> did_you_mean("pacz", ["VLCS", "PACS"])
    "did you mean 'PACS'? known: PACS, VLCS"
    """
    ranked = sorted(known, key=lambda other: (-_likeness(name, other), other))
    listing = "known: " + (", ".join(ranked) if ranked else "none")
    if ranked and _likeness(name, ranked[0]) >= 0.5:
        return f"did you mean {ranked[0]!r}? {listing}"
    return listing


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()
