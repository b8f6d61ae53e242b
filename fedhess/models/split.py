"""Split any network at its last linear layer: the layer is the head, and its input is the features."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedhess.base.errors import StrategyError, UsageError
from fedhess.base.users_code import users_code
from fedhess.models.headed import BATCH_NORMS, FrozenNorms, HeadedModel, to_unit

PROBES = 2  # examples that a network is tried on


class SplitNetwork(FrozenNorms):
    """A network whose head is replaced by an identity: scales (B, ...) inputs and maps them to (B, D) features."""

    def __init__(self, network: nn.Module, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (B, D) features."""
        features: Tensor = self.network(self.scale(inputs))
        return features


class ToFloat(nn.Module):
    """Bring inputs to the model's dtype; bytes become floats in [0, 1]."""

    kind: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kind", torch.empty(0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Convert."""
        return to_unit(inputs, self.kind.dtype)


class _Call(NamedTuple):
    """Input and output of one call of a linear layer."""

    name: str
    layer: nn.Linear
    features: Tensor
    logits: Tensor


def split_network(
    network: nn.Module, *, name: str, input_shape: tuple[int, ...], outputs: int, scale: nn.Module | None = None
) -> HeadedModel:
    """Split a network at the linear layer whose output it returns; running it on random inputs finds the layer.

    The network, (B, ...) inputs to (B, C) logits, is changed in place. Inputs go through ``scale`` first; by default
    bytes become floats in [0, 1].

    Raises:
        UsageError: The network returns no (B, C) logits, or no linear layer on (B, D) features computes them; or one of
            its tensors cannot be sent.
        StrategyError: The network raised.
    """
    scale = scale or ToFloat()
    inputs = torch.rand(PROBES, *input_shape)
    network.eval()
    logits, calls = _try(network, scale(inputs), name)
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not isinstance(logits, Tensor) or logits.shape != (PROBES, outputs):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(
            f"model {name!r}: expected logits of shape (B, {outputs}) for inputs of shape {(PROBES, *input_shape)}, "
            f"got {got}; return one logit a class"
        )
    heads = [call for call in calls if call.logits.shape == logits.shape and torch.equal(call.logits, logits)]
    if not heads:
        if linear:
            last = f"the last that it calls is {calls[-1].name!r}" if calls else "it calls none"
            raise UsageError(
                f"model {name!r}: none of its nn.Linear ({_listed(linear)}) computes the logits that it returns, "
                f"{last}; return what the head computes as it is, without a softmax"
            )
        raise UsageError(
            f"model {name!r} has no nn.Linear, which its head must be; its modules: "
            f"{_listed([f'{path} ({type(module).__name__})' for path, module in network.named_modules() if path])}"
        )
    head = heads[-1]
    if head.features.dim() != 2 or [call.name for call in calls].count(head.name) > 1:
        raise UsageError(
            f"model {name!r}: expected its head {head.name!r} to be called once, on features of shape (B, D), got "
            f"{[tuple(call.features.shape) for call in calls if call.name == head.name]}"
        )
    _check_tensors(network, name)
    with _varied(network):
        before, again = (_in_training(network, scale(inputs), name) for _ in range(2))
        _replace(network, head.name)
    model = HeadedModel(SplitNetwork(network, scale), head.layer, head_name=head.name)
    _check_split(model, inputs, logits, name)
    if before is None or again is None or not torch.equal(before, again):
        return model  # not reproducible, or not run: nothing to compare
    with _varied(model):
        after = _in_training(model, inputs, name)
    if after is not None and not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise UsageError(
            f"model {name!r}: something comes after its head {model.head_name!r}, as a dropout or a trained scale, and "
            "would come before it here; let the head be the last thing that it computes"
        )
    return model


@contextmanager
def _varied(network: nn.Module) -> Iterator[None]:
    """Perturb parameters within the block so that none is neutral, like a scale of 1; then restore them and buffers."""
    parameters = [(own, own.detach().clone()) for own in network.parameters() if own.is_floating_point()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.no_grad():
        try:
            for own, _ in parameters:
                own.mul_(1.05).add_(0.01)
            yield
        finally:
            for own, value in parameters:
                own.copy_(value)
            for module, name, buffer, value in buffers:  # a forward pass may have replaced them
                setattr(module, name, buffer)
                buffer.copy_(value)


def _in_training(network: nn.Module, inputs: Tensor, name: str) -> Tensor | None:
    """Run a network in training mode, except for its batch norms, with the same random numbers each time.

    Returns None if the network returns no tensor, or fails with perturbed parameters.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
    # A user's network may draw from the global generators.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            users_code(f"model {name!r}", "forward", type(network)),
        ):
            torch.default_generator.manual_seed(0)
            made = network(inputs)
    except StrategyError:
        return None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return made if isinstance(made, Tensor) else None


def _try(network: nn.Module, inputs: Tensor, name: str) -> tuple[object, list[_Call]]:
    """Run a network; return what it returned, and each call of a linear layer."""
    calls: list[_Call] = []
    hooks = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):

            def note(layer: nn.Module, taken: tuple[Tensor, ...], made: Tensor, path: str = path) -> None:
                assert isinstance(layer, nn.Linear)
                calls.append(_Call(path, layer, taken[0], made.clone()))

            hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), users_code(f"model {name!r}", "forward", type(network)):
            return network(inputs), calls
    finally:
        for hook in hooks:
            hook.remove()


def _replace(network: nn.Module, path: str) -> None:
    parent, _, own = path.rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())


def _check_tensors(network: nn.Module, name: str) -> None:
    """Check that each tensor has one name, since updates are sent by name, and that its updates can be subtracted."""
    names: dict[int, str] = {}
    for path, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in names:
            raise UsageError(
                f"model {name!r}: {names[id(tensor)]!r} and {path!r} are one tensor, and updates are sent by name; "
                "register it, and the module that it is of, once (a plain list or tuple registers nothing)"
            )
        names[id(tensor)] = path
        if tensor.dtype == torch.bool:
            raise UsageError(
                f"model {name!r}: buffer {path!r} holds truth values, whose update cannot be averaged; register it "
                "with persistent=False, or as whole numbers"
            )


def _check_split(model: HeadedModel, inputs: Tensor, logits: Tensor, name: str) -> None:
    """Check that featurizer and head compute what the network did, and that training has features of the same shape."""
    with torch.no_grad(), users_code(f"model {name!r}", "forward", type(model.featurizer)):
        again = model.eval()(inputs)
        model.train()
        features = model.featurizer(inputs)
    if not isinstance(features, Tensor) or features.shape != (PROBES, model.head.in_features):
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(
            f"model {name!r}: expected features of shape (B, {model.head.in_features}) in training too, got {got}; "
            "return the logits alone"
        )
    if not torch.allclose(again, logits, rtol=1e-4, atol=1e-5):
        raise UsageError(
            f"model {name!r}: without its head {model.head_name!r} it does not return what the head takes; let the "
            "head be the last thing that it computes, and its output not depend on anything else"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
