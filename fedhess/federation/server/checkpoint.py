"""What a run must remember to continue with the same bits: model, server optimizer, strategy, round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedhess.alignment.strategy import DomainStrategy
from fedhess.federation.server.flower_state import flower_state, restore_flower_state
from fedhess.federation.server.global_model import GlobalModel
from fedhess.federation.server.previous_references import PreviousStatistics

Value = TypeVar("Value")


@dataclass
class Checkpoint:
    """A completed round.

    Attributes:
        server_round: Number of the round; 0 is the untrained model.
        tensors: Everything that is a tensor, by ``"model/..."``, ``"optimizer/INDEX/..."``, ``"strategy/..."``,
            ``"previous/..."``.
        plain: State of optimizer and strategy that is no tensor, by the same names; JSON.
        unreported: What no row of rounds.jsonl tells yet: failures, traffic and seconds since the last evaluation, and
            ``"trained"``, the clients' training metrics, where the round itself is yet to be evaluated; JSON.
    """

    server_round: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    unreported: dict[str, Any] = field(default_factory=dict)

    def restore(self, model: GlobalModel) -> None:
        """Put model and server optimizer back to this round."""
        model.replace(_under(self.tensors, "model/"))
        state: dict[int, dict[str, Any]] = {}
        for name, value in (_under(self.tensors, "optimizer/") | _under(self.plain, "optimizer/")).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        if state:
            groups = model.optimizer.state_dict()["param_groups"]
            model.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def header(self) -> str:
        """Return the state that is not tensors as JSON."""
        return json.dumps({"round": self.server_round, "plain": self.plain}, sort_keys=True)


def snapshot(
    server_round: int,
    model: GlobalModel,
    strategy: DomainStrategy | Strategy,
    previous: PreviousStatistics | None = None,
    unreported: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Collect the state after a round; tensors are shared, so write it before the next round.

    Args:
        server_round: Number of the round.
        model: Global model and server optimizer.
        strategy: Of the run.
        previous: Statistics for the next round's references, if the run uses those.
        unreported: What no row of rounds.jsonl tells yet; JSON.
    """
    checkpoint = Checkpoint(server_round, unreported=dict(unreported or {}))
    for name, tensor in model.tensors.items():
        checkpoint.tensors[f"model/{name}"] = tensor
    for index, state in model.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                checkpoint.tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                checkpoint.plain[f"optimizer/{index}/{key}"] = value
    tensors, plain = (strategy.state_dict(), {}) if isinstance(strategy, DomainStrategy) else flower_state(strategy)
    checkpoint.tensors |= {f"strategy/{name}": tensor for name, tensor in tensors.items()}
    checkpoint.plain |= {f"strategy/{name}": value for name, value in plain.items()}
    if previous is not None:
        held, calls = previous.state()
        checkpoint.tensors |= {f"previous/{name}": tensor for name, tensor in held.items()}
        checkpoint.plain["previous"] = calls
    return checkpoint


def restore_strategy(strategy: DomainStrategy | Strategy, checkpoint: Checkpoint) -> None:
    """Give a strategy back what it remembered."""
    tensors = _under(checkpoint.tensors, "strategy/")
    if isinstance(strategy, DomainStrategy):
        strategy.load_state_dict(tensors)
    else:
        restore_flower_state(strategy, tensors, _under(checkpoint.plain, "strategy/"))


def restore_previous(previous: PreviousStatistics, checkpoint: Checkpoint) -> None:
    """Give back the statistics that the next round uses; a checkpoint without any leaves it to ask for them."""
    previous.restore(_under(checkpoint.tensors, "previous/"), checkpoint.plain.get("previous", []))


def _under(values: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
