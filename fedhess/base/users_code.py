"""Turn errors in user code (strategies, models, benchmarks) into one message that names the place, no traceback."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fedhess.base.errors import FederationError, StrategyError, UsageError


@contextmanager
def users_code(whose: str, hook: str, code: Any = None, *, calls: Any = None) -> Iterator[None]:
    """Turn any exception of a user's code into one message that names the code, the hook and the place.

    Args:
        whose: The owner of the code, as the run names it: ``"strategy 'mine:Mine'"``.
        hook: The part of the code that runs.
        code: The function that runs, or its class.
        calls: A class that the code calls. Errors that pass through its module (a lost connection) are not changed.

    Raises:
        StrategyError: The block raised something other than UsageError, FederationError or an out-of-memory error.
    """
    try:
        yield
    except (UsageError, FederationError, MemoryError):
        raise
    except Exception as error:
        import torch  # noqa: PLC0415 - a command's --help does not need it

        if isinstance(error, torch.OutOfMemoryError):
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        if calls is not None and any(_module(frame) == calls.__module__ for frame, _ in frames):
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        where = "" if isinstance(error, SyntaxError) else f" ({_place(frames, code)})"  # its message has the place
        raise StrategyError(f"{whose}, {hook}: {what}{where}; correct it there") from error


def _place(frames: list[tuple[FrameType, int]], code: Any) -> str:
    """Name file and line of the innermost frame in the code's package; else the class, or where the code is defined."""
    package = str(getattr(code, "__module__", "")).partition(".")[0]
    own = [at for at in frames if _module(at[0]).partition(".")[0] == package]
    if not own and inspect.isclass(code):
        return f"class {code.__module__}:{code.__qualname__}"
    defined = getattr(inspect.unwrap(code), "__code__", None)
    if own or defined is None:
        frame, line = (own or frames)[-1]
        return f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
    return f"{defined.co_filename}, line {defined.co_firstlineno}, in {defined.co_name}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
