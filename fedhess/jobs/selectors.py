"""The names of the selectors, which choose the round and the setting that a job reports."""

from fedhess.base.errors import UsageError, did_you_mean

SOURCE_VALIDATION = "source validation"
LAST_ROUND = "last round"
LODO = "leave-one-domain-out cross-validation"
ORACLE = "oracle (looks at the target)"

# Keyed by the name that --selection takes. The oracle is only for reports that ask for it.
SELECTORS = {"source": SOURCE_VALIDATION, "lodo": LODO, "oracle": ORACLE}
DEFAULT = "source"


def read_selectors(given: str) -> list[str]:
    """Read ``--selection``: names of selectors, or all."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if names == ["all"]:
        return list(SELECTORS)
    for name in names:
        if name not in SELECTORS:
            raise UsageError(f"--selection: unknown selector {name!r}; {did_you_mean(name, SELECTORS)}, or all")
    if not names:
        raise UsageError(f"--selection: expected all or some of {', '.join(SELECTORS)}, got nothing")
    return names
