"""Mistakes in single settings, in words."""

from collections.abc import Iterable

from pydantic_core import ErrorDetails

from fedhess.base.errors import did_you_mean

# What a value was expected to be, by pydantic's name of the error.
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
}


def describe_error(detail: ErrorDetails, known: Iterable[str]) -> str:
    """Describe a mistake that pydantic found in one of the known settings: the option, what was expected, what came."""
    if not detail["loc"]:  # an error of several settings, whose message names them
        return detail["msg"].removeprefix("Value error, ")
    option = "--" + ".".join(str(part) for part in detail["loc"]).replace("_", "-")
    if detail["type"] == "missing":
        return f"{option}: it must be given"
    if detail["type"] == "extra_forbidden":
        return f"{option}: there is no such setting; {did_you_mean(str(detail['loc'][0]), known)}"
    if detail["type"] == "value_error":
        return f"{option}: {detail['msg'].removeprefix('Value error, ')}"
    template = _EXPECTED.get(detail["type"])
    bounds = {key: f"{value:g}" if isinstance(value, float) else value for key, value in detail.get("ctx", {}).items()}
    expected = f"expected {template.format(**bounds)}" if template else detail["msg"]
    return f"{option}: {expected}, got {detail['input']!r}"
