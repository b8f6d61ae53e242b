"""Errors that a user can mend, and the nearest-name advice that goes with them."""

import inspect
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import FrameType
from typing import Any

import torch


class UsageError(Exception):
    """A mistake of the user: the commands print its message and exit with status 2, without a traceback.

    The message says what was expected, what came and what to do next.
    """


class StrategyError(UsageError):
    """The code of a strategy raised, or returned what it may not; ``__cause__`` is what it raised in this process."""


class FederationError(RuntimeError):
    """A round could not be completed: too few clients answered. The message names clients, phase and reasons."""


class DivergedError(FederationError):
    """Training led to values that are not finite. Going on from the last round would lead there again."""


class StorageError(Exception):
    """Results could not be written: the disk is full or the permissions are gone. No mistake in the command."""


@contextmanager
def strategy_code(strategy: str, hook: str, code: Any, *, calls: Any = None) -> Iterator[None]:
    """Turn whatever a strategy's own code raises into one message that names strategy, hook and place.

    Args:
        strategy: The strategy as the run names it.
        hook: Which part of it runs.
        code: The function that runs, or the class it is of.
        calls: A class that the code calls and whose errors are not the code's: a lost connection is not.

    Raises:
        StrategyError: The block raised something other than a message for the user, an error of the federation, or
            that there is no memory left.
    """
    try:
        yield
    except (UsageError, FederationError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        if calls is not None and any(_module(frame) == calls.__module__ for frame, _ in frames):
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise StrategyError(
            f"strategy {strategy!r}, {hook}: {what} ({_place(frames, code)}); correct it there"
        ) from error


def _place(frames: Sequence[tuple[FrameType, int]], code: Any) -> str:
    """Name file and line: the innermost frame in the package of the code, else where the code is defined."""
    package = str(getattr(code, "__module__", "")).partition(".")[0]
    own = [at for at in frames if _module(at[0]).partition(".")[0] == package]
    defined = getattr(inspect.unwrap(code), "__code__", None)
    if own or defined is None:
        frame, line = (own or frames)[-1]
        return f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
    return f"{defined.co_filename}, line {defined.co_firstlineno}, in {defined.co_name}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """List the known names, those nearest to ``name`` first.

    Args:
        name: What the user wrote.
        known: Every name that would have been accepted.

    Returns:
        ``"did you mean 'PACS'? known: PACS, VLCS"``, or only the list when nothing is near.

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
