"""What a target client sends about its examples: one evaluation a round, with counts protected if the node says so.

A node sets ``evaluation-rounding`` and ``evaluation-epsilon``, whatever the run's settings are. With either it sends
the counts of an evaluation by label and prediction, and the accuracy computed from these counts. It sends no loss, and
nothing about confidences.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ConfigRecord, Context
from torch import Tensor

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import TARGET
from fedhess.federation.client.evaluation import Evaluation
from fedhess.federation.protocol import CONFUSION, EVALUATION_EPSILON, EVALUATION_ROUNDING
from fedhess.settings.assignments import Scalar

PROTECTION = (EVALUATION_ROUNDING, EVALUATION_EPSILON)
ANSWERED = "answered"  # record in the context's state: kept between a run's messages, lost when the node restarts


@dataclass(frozen=True)
class Protection:
    """How a node protects its counts."""

    rounding: int = 1  # counts are multiples of it
    epsilon: float = 0.0  # of each evaluation; 0 for no noise

    @classmethod
    def of(cls, node_config: Mapping[str, Scalar], role: str) -> "Protection":
        """Read a node's settings."""
        given = {key: node_config[key] for key in PROTECTION if key in node_config}
        rounding, epsilon = given.get(EVALUATION_ROUNDING, 1), given.get(EVALUATION_EPSILON, math.inf)
        if not isinstance(rounding, int) or rounding < 1:
            raise UsageError(f"this node's {EVALUATION_ROUNDING}: expected a whole number from 1, got {rounding!r}")
        if isinstance(epsilon, str | bool) or not epsilon > 0:
            raise UsageError(f"this node's {EVALUATION_EPSILON}: expected a number above 0, got {epsilon!r}")
        if given and role != TARGET:
            raise UsageError(
                f"this node's {', '.join(given)}: only a target's evaluation is protected, and this node is a {role}; "
                "leave it out, or start the node with role=target"
            )
        return cls(rounding, 0.0 if math.isinf(epsilon) else float(epsilon))

    @property
    def is_off(self) -> bool:
        """Whether counts are sent as they are."""
        return self == Protection()

    def apply(self, result: Evaluation) -> Evaluation:
        """Return the evaluation with protected counts and the accuracy computed from them, if protection is on."""
        if self.is_off:
            return result
        counts = result.counts[CONFUSION]
        if self.epsilon:
            counts = (counts + two_sided_geometric(counts.shape, self.epsilon)).clamp(0, result.examples)
        counts = ((counts + self.rounding // 2) // self.rounding * self.rounding).to(torch.int32)
        accuracy = min(1.0, int(counts.trace()) / result.examples)
        return Evaluation(math.nan, accuracy, result.examples, {CONFUSION: counts})


def two_sided_geometric(shape: tuple[int, ...], epsilon: float) -> Tensor:
    """Draw noise that makes counts of a known total epsilon-differentially private: integers, int64.

    P(k) = (1 - a) / (1 + a) a^abs(k) with a = exp(-epsilon / 2), since replacing one example changes two counts
    by 1. Source: Ghosh, Roughgarden, Sundararajan, "Universally Utility-Maximizing Privacy Mechanisms", STOC 2009.
    Drawn from the operating system's secure source, because the server knows the run's seed.
    """
    bits = np.frombuffer(secrets.token_bytes(16 * math.prod(shape)), dtype=np.uint64) >> np.uint64(11)
    geometric = np.floor(np.log1p(-(bits / 2.0**53)) * (-2 / epsilon)).astype(np.int64).reshape(2, *shape)
    return torch.from_numpy(geometric[0] - geometric[1])


def answer_once(context: Context, server_round: int, *, rounds: int) -> None:
    """Record that a round is answered; ``UsageError`` unless it is after the last one and at most ``rounds``."""
    record = context.state.config_records.get(ANSWERED, ConfigRecord())
    last = record["round"] if record.get("run-id") == context.run_id else -1
    assert isinstance(last, int), "only this function writes it"
    if not last < server_round <= rounds:
        raise UsageError(
            f"a target evaluates one model a round, in order, in rounds 0 to {rounds}: got round {server_round} after "
            f"{last if last != -1 else 'none'}"
        )
    context.state[ANSWERED] = ConfigRecord({"run-id": context.run_id, "round": server_round})
