"""Names of combined strategies, ``hgp+sagm``, and of their arguments: ``hgp_alpha``, ``sagm_rho``."""

from collections.abc import Callable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
PLUS = "+"


def parts_of(strategy: str) -> dict[str, str]:
    """Return the strategies of a combination by the prefix of their arguments; a single strategy has an empty prefix.

    >>> parts_of("hgp+mine.rules:Sharp"), parts_of("hgp")
    ({'hgp_': 'hgp', 'Sharp_': 'mine.rules:Sharp'}, {'': 'hgp'})
    """
    if PLUS not in strategy:
        return {"": strategy}
    return {f"{part.rpartition(':')[2]}_": part for part in strategy.split(PLUS)}


def joined(strategy: str, of: Callable[[str], Mapping[str, Value]]) -> dict[str, Value]:
    """Merge the mappings ``of`` a strategy's parts, from argument to value, under the names in the combination."""
    return {f"{prefix}{key}": value for prefix, part in parts_of(strategy).items() for key, value in of(part).items()}


def bare(strategy: str, args: Mapping[str, Value]) -> dict[str, Value]:
    """Return arguments under the names that they have outside of the combination."""
    return {
        key.removeprefix(prefix): value
        for prefix in parts_of(strategy)
        for key, value in args.items()
        if key.startswith(prefix)
    }
