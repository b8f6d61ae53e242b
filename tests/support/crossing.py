"""Parameters of which some are in the quick suite and the others are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def crossed(methods: Iterable[str], arrangements: Iterable[str]) -> list[Any]:
    """Return all pairs; with the first method the first arrangement is quick, with the second the second, ..."""
    several = list(arrangements)
    return [
        pytest.param(method, each, marks=[] if number % len(several) == place else [pytest.mark.slow])
        for number, method in enumerate(methods)
        for place, each in enumerate(several)
    ]


def sampled(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """Return all names; those that are not ``quick`` are slow."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]
