"""What Flower's SecAgg+ does with fedhess's messages in this version: why docs/threats.md says that it hides nothing.

A test that fails after an upgrade of Flower says that SecAgg+ may carry them now.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from federations import Finished
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.server.workflow import SecAggPlusWorkflow
from methods import METHODS, RELAYS, Method

from fedhess.alignment.means import PerDomain
from fedhess.federation import protocol
from fedhess.federation.flower_compat import run_identity
from fedhess.federation.server.local_training import LocalPhase
from fedhess.federation.tensors import decode_tensors, encode_tensors

STATISTICS, UPDATES = "single statistics", "single updates"
# What a strategy's server half reads one by one; of all the others sums would do.
SINGLE: dict[str, list[str]] = {
    **{name: [STATISTICS] for name in ("hgp-relative", "hutchinson-relative", "cma-relative", "fishr")},
    **{name: [STATISTICS] for name in ("groupdro", "groupdro-projection")},
    **{name: [UPDATES] for name in ("fedgma", "fedomg", "scaffold", "fish", "fish-momentum")},
    **{name: [STATISTICS, UPDATES] for name in ("ga", "ga-loss")},
}
QUICK = ("hgp-alpha", "hgp-relative", "ga", "fish")
ALL = METHODS | RELAYS | {"cma-relative": Method("cma", {}, None)}


@pytest.fixture
def in_a_run() -> Iterator[None]:
    with run_identity(1):
        yield


def context() -> Context:
    return Context(1, 2, {}, RecordDict(), {})


def reply(message: Message, _: Context) -> Message:
    """Reply as a source client does."""
    arrays = encode_tensors({"head.weight": torch.ones(2, 3)})
    key = protocol.MODEL if message.metadata.message_type.startswith("train") else protocol.STATISTIC_VALUES
    return Message(RecordDict({key: arrays, protocol.METRICS: MetricRecord({"loss": 1.0})}), reply_to=message)


@pytest.mark.usefixtures("in_a_run")
@pytest.mark.parametrize("message_type", [protocol.STATISTICS, protocol.EVALUATE, "train.masked"])
def test_its_client_half_passes_all_but_plain_train_messages_unmasked(message_type: str) -> None:
    sent = secaggplus_mod(Message(RecordDict(), dst_node_id=2, message_type=message_type), context(), reply)
    (arrays,) = sent.content.array_records.values()
    assert torch.equal(decode_tensors(arrays)["head.weight"], torch.ones(2, 3))


def test_its_server_half_wants_the_context_of_flowers_old_server() -> None:
    with pytest.raises(TypeError, match="Expect a LegacyContext, but get Context"):
        SecAggPlusWorkflow(3, 2)(None, context())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ALL])
def test_which_strategies_need_only_sums(
    toy_run: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: set[str] = set()
    domain, mean, one = PerDomain.__getitem__, LocalPhase.mean_update, LocalPhase.train_domain

    def value(values: PerDomain, key: str) -> torch.Tensor:
        seen.add(STATISTICS)
        return domain(values, key)

    def mean_update(phase: LocalPhase, *given: Any, each: Any = None, **more: Any) -> dict[str, torch.Tensor]:
        seen.update({UPDATES} if each is not None else ())
        return mean(phase, *given, each=each, **more)

    def train_domain(phase: LocalPhase, *given: Any, **more: Any) -> Any:
        seen.add(UPDATES)
        return one(phase, *given, **more)

    monkeypatch.setattr(PerDomain, "__getitem__", value)
    monkeypatch.setattr(LocalPhase, "mean_update", mean_update)
    monkeypatch.setattr(LocalPhase, "train_domain", train_domain)
    method = ALL[name]
    changes: Mapping[str, Any] = {"rounds": 2} | method.changes
    toy_run(strategy=method.strategy, strategy_args=method.args, **changes)
    assert sorted(seen) == SINGLE.get(name, [])
