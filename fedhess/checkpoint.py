"""What a run must remember to continue with the same bits: model, server optimizer, strategy, round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedhess.aggregation import GlobalModel
from fedhess.strategy import DomainStrategy


@dataclass
class Checkpoint:
    """A completed round.

    Attributes:
        server_round: Number of the round; 0 is the untrained model.
        tensors: Everything that is a tensor, by ``"model/..."``, ``"optimizer/INDEX/..."``, ``"strategy/..."``.
        scalars: The optimizer's state that is no tensor, by the same names.
    """

    server_round: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float | int | bool] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def restore(self, model: GlobalModel) -> None:
        """Put model and server optimizer back to this round."""
        model.replace(self.part("model/"))
        state: dict[int, dict[str, Any]] = {}
        for name, value in (self.part("optimizer/") | _under(self.scalars, "optimizer/")).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        if state:
            groups = model.optimizer.state_dict()["param_groups"]
            model.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def header(self) -> str:
        """Return the part that is not tensors as JSON."""
        return json.dumps({"round": self.server_round, "scalars": self.scalars}, sort_keys=True)


def snapshot(server_round: int, model: GlobalModel, strategy: DomainStrategy | Strategy) -> Checkpoint:
    """Collect the state after a round; tensors are shared, so write it before the next round."""
    checkpoint = Checkpoint(server_round)
    for name, value in model.tensors.items():
        checkpoint.tensors[f"model/{name}"] = value
    for index, state in model.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                checkpoint.tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                checkpoint.scalars[f"optimizer/{index}/{key}"] = value
    remembered = strategy.state_dict() if isinstance(strategy, DomainStrategy) else _flower_state(strategy)
    for name, value in remembered.items():
        checkpoint.tensors[f"strategy/{name}"] = value
    return checkpoint


def restore_strategy(strategy: DomainStrategy | Strategy, checkpoint: Checkpoint) -> None:
    """Give a strategy back what it remembered."""
    state = checkpoint.part("strategy/")
    if isinstance(strategy, DomainStrategy):
        strategy.load_state_dict(state)
        return
    # Flower's strategies keep moments as dictionaries of arrays in attributes (FedOpt: m_t, v_t, current_arrays).
    remembered: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        attribute, _, key = name.partition("/")
        remembered.setdefault(attribute, {})[key] = value.numpy()
    for attribute, arrays in remembered.items():
        setattr(strategy, attribute, arrays)


def _flower_state(strategy: Strategy) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for attribute, value in vars(strategy).items():
        if isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
            for key, array in value.items():
                state[f"{attribute}/{key}"] = torch.from_numpy(np.array(array))
    return state


def _under(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
