"""Errors that a user can correct, and the nearest-name advice that goes with them."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class UsageError(Exception):
    """A mistake of the user: the commands print its message and exit with status 2, without a traceback.

    The message says what was expected, what came and what to do next.
    """


class StrategyError(UsageError):
    """The code of a strategy, a model or a benchmark raised, or returned what it may not.

    ``__cause__`` is what it raised in this process.
    """


class FederationError(RuntimeError):
    """A round could not be completed: too few clients answered. The message names clients, phase and reasons."""


class DivergedError(FederationError):
    """Training led to values that are not finite. Going on from the last round would lead there again."""


class StorageError(Exception):
    """Results could not be written: the disk is full or not writable; no mistake in the command."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """List the known names, those nearest to ``name`` first; only the list when none is near.

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
