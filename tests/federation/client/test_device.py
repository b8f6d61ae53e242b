"""What crosses to an accelerator, and how often the host waits for it, counted on a device that computes nothing."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from crossing import sampled
from flwr.app import Context, Message
from methods import METHODS
from torch.utils._python_dispatch import TorchDispatchMode
from toy import DOMAINS, SOURCES

from fedhess.federation.client import evaluation
from fedhess.federation.client.app import app as client_app

Run = Callable[..., Any]
Counted = Callable[..., Counter[str]]


class Accelerator(TorchDispatchMode):
    """The meta device as an accelerator: copies to it and from it are counted, and what is read of it is zero."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_local_scalar_dense" and args[0].is_meta:
            self.counts["waits"] += 1
            return 0
        if name == "_to_copy" and args[0].is_meta and torch.device(kwargs.get("device", "meta")).type == "cpu":
            self.counts["waits"] += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        if name == "_to_copy" and not args[0].is_meta and kwargs.get("device") == torch.device("meta"):
            self.counts["sent"] += 1
        if name == "copy_" and args[0].is_meta != args[1].is_meta:
            self.counts["sent" if args[0].is_meta else "waits"] += 1
        return func(*args, **kwargs)


@pytest.fixture
def counted(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Run on the accelerator and count by type of message."""
    monkeypatch.setattr("fedhess.federation.client.call.resolve_device", lambda name: name)

    def run(**changes: Any) -> Counter[str]:
        counts: Counter[str] = Counter()

        class OnAccelerator:
            def __call__(self, message: Message, context: Context) -> Message:
                context.node_config["device"] = "meta"
                mine: Counter[str] = Counter()
                with Accelerator(mine):
                    reply = client_app(message, context)
                assert not reply.has_error(), reply.error
                for what, number in mine.items():
                    counts[f"{message.metadata.message_type} {what}"] += number
                return reply

        toy_run(app=OnAccelerator(), rounds=1, **changes)
        return counts

    return run


@pytest.mark.parametrize("method", sampled(METHODS, ("hgp-alpha", "hutchinson-probes", "iga", "fediir-average")))
def test_a_local_step_sends_its_batch_and_waits_for_nothing(counted: Counted, method: str) -> None:
    strategy, args, changes = METHODS[method].strategy, METHODS[method].args, METHODS[method].changes
    few, many = (counted(strategy=strategy, strategy_args=args, **changes | {"local_steps": n}) for n in (2, 3))
    # Inputs and labels; the probes, and Hutchinson's again for backward; FedSR's noise.
    a_step = 4 if strategy == "hutchinson" and "probes" in args else 3 if "probes" in args or method == "fedsr" else 2
    waits = ("loss and objective", "update") + (("losses and hits", "labels") if strategy == "ga" else ())
    assert many["train sent"] - few["train sent"] == len(SOURCES) * a_step
    assert few["train waits"] == many["train waits"] == len(SOURCES) * len(waits)


def test_a_model_is_sent_once_for_all_clients_and_references_of_a_client_together(counted: Counted) -> None:
    counts = counted(strategy="coral", strategy_args={"gamma": 1.0})
    built, models, evaluated = 6, 2, 2 * len(DOMAINS)  # tensors of the network; evaluated before and after the round
    assert counts["evaluate sent"] == built + models + 2 * evaluated + 2 * len(SOURCES)  # inputs, labels; alignment
    assert counts["query.statistics sent"] == 2 * len(SOURCES)
    assert counts["train sent"] == len(SOURCES)
    assert counts["query.statistics waits"] == len(SOURCES)


def test_an_evaluation_waits_as_often_for_many_batches_as_for_one(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = counted()
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)
    many = counted()
    assert many["evaluate sent"] - one["evaluate sent"] == 2 * (2 * len(DOMAINS) + len(SOURCES)) * (48 // 4 - 1)
    assert one["evaluate waits"] == many["evaluate waits"] == 2 * (2 * len(DOMAINS) + len(SOURCES))
