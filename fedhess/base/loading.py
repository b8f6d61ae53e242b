"""Load users' code by name (entry points, ``package.module:Name``), and check the arguments that text gives it."""

import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from fedhess.base.errors import StrategyError, UsageError, did_you_mean
from fedhess.base.users_code import users_code

Scalar = str | int | float | bool


@cache
def installed(group: str) -> dict[str, str]:
    """Read the installed entry points of a group; cached, since the search takes a tenth of the time of a small run."""
    return {entry.name: entry.value for entry in entry_points(group=group)}


def is_here(path: str) -> bool:
    """Whether the module of ``package.module:Name`` can be found on this machine; it may be on others."""
    try:
        return importlib.util.find_spec(path.partition(":")[0]) is not None
    except (ImportError, ValueError):  # the parent package cannot be imported, or this is no module name
        return False


def find_object(path: str, *, name: str, kind: str) -> Any:
    """Import the object at a path, ``package.module:Name``.

    Messages contain ``name``, as the user wrote it, and ``kind``, such as ``"strategy"``, which is also its option.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError(f"--{kind}: expected a name or package.module:Class, got {path!r}")
    try:
        with users_code(f"{kind} {name!r}", f"import of {module_name}"):
            module = importlib.import_module(module_name)
    except StrategyError as error:
        if isinstance(error.__cause__, ImportError):
            raise UsageError(
                f"--{kind}: cannot import {module_name!r} for {name!r}: {error.__cause__}; is it installed, or on "
                "PYTHONPATH?"
            ) from error.__cause__
        raise
    found = getattr(module, attribute, None)
    if found is None:
        there = [key for key, value in vars(module).items() if isinstance(value, type | types.FunctionType)]
        raise UsageError(f"--{kind}: {module_name} has no {attribute!r}; {did_you_mean(attribute, there)}")
    return found


def text_parameters(function: Any, *, what: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function, or of a class's constructor, that text can set: the scalar ones."""
    annotated = inspect.getattr_static(function, "__init__") if inspect.isclass(function) else function
    if annotated is object.__init__:
        return {}
    with users_code(what, "annotations of its constructor" if inspect.isclass(function) else "annotations", annotated):
        hints = typing.get_type_hints(annotated)
    return {
        name: parameter.replace(annotation=_without_none(hints[name]))
        for name, parameter in inspect.signature(function).parameters.items()
        if name in hints and _scalar_types(_without_none(hints[name]))
    }


def checked_arguments(
    parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Scalar], *, option: str, what: str, of: Any = None
) -> dict[str, Scalar]:
    """Check arguments against the annotations of `text_parameters`; whole numbers become floats where annotated so.

    ``of`` is the function or class that takes them. With it, the message for an argument without annotation has advice.
    """
    for key in given:
        if key not in parameters:
            if of is not None and key in inspect.signature(of).parameters:
                raise UsageError(
                    f"{option}: {what} has an argument {key!r} that text cannot give; annotate it as a str, int, float "
                    "or bool, or as a Literal of them"
                )
            advice = did_you_mean(key, parameters) if parameters else "it takes none"
            raise UsageError(f"{option}: {what} has no argument {key!r}; {advice}")
    return {
        key: _converted(f"{option}: {key} of {what}", value, parameters[key].annotation) for key, value in given.items()
    }


_WANTED = {int: "a whole number", float: "a finite number", bool: "true or false"}


def _converted(argument: str, value: Scalar, annotation: Any) -> Scalar:
    accepted = _scalar_types(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        if value in choices:
            return value
        wanted = " or ".join(map(str, choices))
    elif type(value) in accepted:
        return value
    elif float in accepted and type(value) is int:
        return float(value)
    elif str in accepted:
        return str(value)
    else:
        wanted = " or ".join(_WANTED[kind] for kind in accepted)
    raise UsageError(f"{argument}: expected {wanted}, got {value!r}")


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation
    return typing.Union[tuple(kind for kind in typing.get_args(annotation) if kind is not types.NoneType)]  # noqa: UP007


def _scalar_types(annotation: Any) -> tuple[type, ...]:
    """Return the scalar types of an annotation, none if text cannot give its value."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return tuple({type(choice) for choice in options})
    kinds = set(options if origin in (types.UnionType, typing.Union) else (annotation,))
    return tuple(kinds) if kinds <= {str, int, float, bool} else ()
