"""Errors in the code of a strategy, which may be a user's."""

from contextlib import AbstractContextManager
from typing import Any

from fedhess.base.users_code import users_code


def strategy_code(strategy: str, hook: str, code: Any = None, *, calls: Any = None) -> AbstractContextManager[None]:
    """Turn whatever a strategy's own code raises into one message that names strategy, hook and place: `users_code`."""
    return users_code(f"strategy {strategy!r}", hook, code, calls=calls)
