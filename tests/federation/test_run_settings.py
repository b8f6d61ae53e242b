"""Settings as server and node have them: defaults by model, the node's own word on its device and data."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context, RecordDict
from toy import toy_config

from fedhess.alignment import Ask, DomainStrategy, Reference
from fedhess.base.environment import torch_threads
from fedhess.base.errors import UsageError
from fedhess.federation.client.call import place, run_settings
from fedhess.federation.run_settings import settings_of_run
from fedhess.settings.assignments import Scalar

PLAIN: dict[str, Scalar] = {
    "domains": "IconPACS",
    "sources": "photo,cartoon",
    "targets": "sketch",
    "model": "lite0-features",
    "strategy": "hgp",
}


def test_a_resolved_run_config_is_taken_as_it_stands() -> None:
    config = toy_config(strategy="hgp", domains="IconPACS", model="lite0-features", strategy_args={}, lr=0.5)
    assert settings_of_run(config.to_run_config()) == config


def test_arguments_given_as_text_go_over_the_defaults_of_the_model() -> None:
    irm = PLAIN | {"strategy": "irm"}
    assert settings_of_run(irm | {"strategy-args": "weight=0.5"}).strategy_args == {"weight": 0.5, "anneal_steps": 0}
    assert settings_of_run(irm | {"strategy-args": '{"weight": 0.5}'}).strategy_args == {"weight": 0.5}
    assert settings_of_run(PLAIN | {"strategy": "erm"}).strategy_args == {}


def test_the_node_decides_on_its_device_threads_and_data() -> None:
    options = '{"data_dir": "/of/the/server", "skip_bad_images": true}'
    given = PLAIN | {"domains": "PACS", "model": "resnet18", "domains-options": options, "device": "cuda"}
    node: dict[str, Scalar] = {"device": "cpu", "threads": 3, "data-dir": "/mine", "domain": "photo", "rounds": 9}
    settings = settings_of_run(given, node)
    assert (settings.device, settings.threads, settings.data_dir) == ("cpu", 3, "/mine")
    assert settings.domains_options == {"skip_bad_images": True}
    assert settings.rounds == 40, "and on nothing else"


def test_defaults_are_those_of_the_benchmarks_form() -> None:
    given = PLAIN | {"domains": "ColoredMNIST", "sources": "flip-0.1,flip-0.2", "targets": "flip-0.9", "model": "mlp"}
    assert settings_of_run(given | {"domains-options": "form=irm"}).strategy_args["alpha"] == 2.0
    assert "alpha" not in settings_of_run(given | {"domains-options": "form=domainbed"}).strategy_args


def test_device_auto_is_resolved_where_clients_run_and_by_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    auto = PLAIN | {"device": "auto"}
    assert settings_of_run(auto, {}).device == "cpu", "batches of 32 embeddings"
    assert settings_of_run(auto | {"batch-size": 0}, {}).device == "cuda"
    assert settings_of_run(auto | {"model": "resnet18"}, {}).device == "cuda"
    assert settings_of_run(auto).device == "auto", "the server is none of them"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert settings_of_run(auto | {"model": "resnet18"}, {}).device == "cpu"


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(UsageError, match="--targets: it must be given"):
        settings_of_run({key: value for key, value in PLAIN.items() if key != "targets"})
    with pytest.raises(UsageError, match="--references: expected 'current' or 'previous', got 'older'"):
        settings_of_run(PLAIN | {"references": "older"})


def test_a_simulation_with_too_few_nodes_is_told_the_option() -> None:
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 2}, RecordDict(), dict(PLAIN))
    with pytest.raises(UsageError, match=r"2 nodes, the run 3 clients .*--federation-config 'num-supernodes=3'"):
        place(run_settings(context), context)


def test_threads_are_those_of_the_block_alone() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with torch_threads(0):
        assert torch.get_num_threads() == before


class Threads(DomainStrategy):
    """Counts the threads of its clients."""

    statistics: ClassVar = {"threads": lambda batch: batch.features.new_tensor(torch.get_num_threads())}

    def reference(self, ask: Ask) -> Reference:
        self.state["threads"] = ask("threads").mean()
        return {}


@pytest.mark.parametrize("count", [1, 3])
def test_clients_compute_with_the_threads_of_the_run(toy_run: Callable[..., Any], count: int) -> None:
    assert toy_run(strategy=f"{__name__}:Threads", threads=count).server.strategy.state["threads"] == count
