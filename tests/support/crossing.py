"""Every pair of two lists as parameters of a test: each method once in the quick suite, the other pairs are slow."""

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
