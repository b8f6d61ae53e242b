"""The state that a run needs to continue with the same bits: model, server optimizer, strategy, round."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.tensors import decode_tensors, encode_tensors

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and other state as JSON


@dataclass
class Checkpoint:
    """A completed round; state other than tensors is JSON."""

    server_round: int  # 0 is the untrained model
    # By "model/...", "optimizer/INDEX/...", "strategy/...", "previous/...": tensors, and other state.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    # Not yet in a row of rounds.jsonl: failures, traffic and seconds since the last evaluation, and "trained", the
    # clients' training metrics, if the round itself is still to be evaluated.
    unreported: dict[str, Any] = field(default_factory=dict)

    def restore(self, model: GlobalModel) -> None:
        """Put model and server optimizer back to this round."""
        model.replace(below("model/", self.tensors))
        state: dict[int, dict[str, Any]] = {}
        for name, value in (below("optimizer/", self.tensors) | below("optimizer/", self.plain)).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        parameters = [each for group in model.optimizer.param_groups for each in group["params"]]
        for place, values in state.items():  # load_state_dict would convert them to their parameter's dtype
            model.optimizer.state[parameters[place]] = values

    def evaluated(self) -> dict[str, Tensor]:
        """Return the tensors of the model that is evaluated at this round."""
        return below("model/", self.tensors) | below("evaluated/", self.tensors)

    def header(self) -> str:
        """Return the state that is not tensors as JSON."""
        return json.dumps({"round": self.server_round, "plain": self.plain}, sort_keys=True)


def snapshot(
    server_round: int, model: GlobalModel, state: State, unreported: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Collect the state after a round; tensors are shared, so write it before the next round."""
    tensors, plain = {f"model/{name}": tensor for name, tensor in model.tensors.items()}, dict(state[1])
    for index, values in model.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                plain[f"optimizer/{index}/{key}"] = value
    return Checkpoint(server_round, tensors | state[0], plain, dict(unreported or {}))


def below(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values whose names begin with a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


# -- Plain Flower strategies, which have no state_dict of their own ----------------------------------------------------


def flower_state(strategy: Strategy) -> State:
    """Read the state of a plain Flower strategy from its attributes.

    These are numbers (an adaptive clipping norm), dictionaries of arrays (FedOpt's moments), lists of arrays (FedAvgM's
    momentum), single arrays, and array records (its model); other kinds are logged, unless they are functions or empty.
    Tensors are stored by ``"ATTRIBUTE/KEY"``; an attribute has ``{"value": ...}`` or ``{"kind": ..., "keys": [...]}``.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for attribute, value in vars(strategy).items():
        kind, arrays = _parts(value)
        if kind:
            plain[attribute] = {"kind": kind, "keys": list(arrays)}
            tensors |= {f"{attribute}/{key}": array for key, array in arrays.items()}
        elif value is None or isinstance(value, bool | int | float | str):
            plain[attribute] = {"value": value}
        elif not callable(value) and not (isinstance(value, dict | list | tuple) and not value):
            _warn_once(type(strategy).__name__, attribute, type(value).__name__)
    return tensors, plain


@cache
def _warn_once(strategy: str, attribute: str, kind: str) -> None:
    logger.warning(
        "%s.%s is a %s, which no checkpoint can hold: a resumed run has the constructor's", strategy, attribute, kind
    )


def restore_flower_state(strategy: Strategy, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what :func:`flower_state` read."""
    for attribute, entry in plain.items():
        arrays = {key: tensors[f"{attribute}/{key}"] for key in entry.get("keys", ())}
        kind, value = entry.get("kind"), entry.get("value")
        if kind == "record":
            value = encode_tensors(arrays)
        elif kind == "array":
            value = arrays[""].numpy()
        elif kind == "list":
            value = [array.numpy() for array in arrays.values()]
        elif kind == "dict":
            value = {key: array.numpy() for key, array in arrays.items()}
        setattr(strategy, attribute, value)


def _parts(value: object) -> tuple[str, dict[str, Tensor]]:
    """Return the kind of a value that holds arrays, and its tensors by key; the kind is empty for anything else."""
    if isinstance(value, ArrayRecord):
        return "record", decode_tensors(value)
    kind, arrays = "", {}
    if isinstance(value, np.ndarray):
        kind, arrays = "array", {"": value}
    elif isinstance(value, dict):
        kind, arrays = "dict", {str(key): inner for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        kind, arrays = "list", {str(index): inner for index, inner in enumerate(value)}
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return "", {}
    return kind, {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
