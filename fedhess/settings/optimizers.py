"""Optimizers: on the server any class of ``torch.optim`` that steps from gradients alone, on clients SGD or Adam."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedhess.base.errors import UsageError, did_you_mean

# They need a closure or sparse gradients; Muon takes matrices only, and every model has biases.
UNUSABLE = ("LBFGS", "SparseAdam", "Muon")


def optimizer_name(name: str) -> str:
    """Find the ``torch.optim`` class of that name, whatever its case."""
    known = {
        attribute.lower(): attribute
        for attribute, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    for unusable in UNUSABLE:
        known.pop(unusable.lower(), None)
    if name.lower() not in known:
        raise ValueError(f"expected a class of torch.optim, got {name!r}; {did_you_mean(name, known.values())}")
    return known[name.lower()]


def check_optimizer(name: str, *, lr: float, args: Mapping[str, str | int | float | bool]) -> None:
    """Take one step with a server optimizer on a toy parameter, so that its errors come before any training."""
    factory = getattr(torch.optim, name)
    parameter = nn.Parameter(torch.zeros(2))
    defaults = factory([parameter], lr=lr).defaults
    # None is the default of the switches foreach and fused: torch chooses. A tuple cannot be written as key=value.
    settable = {key: default for key, default in defaults.items() if key != "lr" and not isinstance(default, tuple)}
    for key, value in args.items():
        if key == "lr":
            raise UsageError("--server-optimizer-args: the learning rate has an option of its own, --server-lr")
        if key not in settable:
            raise UsageError(
                f"--server-optimizer-args: {name} has no argument {key!r} that text can give; "
                f"{did_you_mean(key, settable)}"
            )
        switch = settable[key] is None or isinstance(settable[key], bool)
        if isinstance(value, str) or isinstance(value, bool) != switch:
            expected = "true or false" if switch else "a finite number"
            raise UsageError(f"--server-optimizer-args: {key} of {name}: expected {expected}, got {value!r}")
    parameter.grad = torch.ones(2)
    try:
        factory([parameter], lr=lr, **args).step()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = ", ".join(f"{key}={value}" for key, value in args.items())
        raise UsageError(f"--server-optimizer-args: {name} rejects {given}: {error}") from error


def client_optimizer(
    name: str, parameters: Sequence[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make the optimizer of a client's round, ``"SGD"`` or ``"Adam"``; it is new each round: clients keep no state."""
    if name == "Adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
