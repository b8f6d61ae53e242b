"""What a run's settings cannot have a deployed node do; the same settings succeed where the node sets no limit."""

import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from image_trees import write_tree
from toy import toy_config

from fedhess.base.errors import UsageError
from fedhess.deploy.settings import check_node_config
from fedhess.federation import protocol
from fedhess.federation.client.app import app
from fedhess.federation.engines.inprocess import InProcessGrid
from fedhess.federation.flower_compat import read_run_config, run_identity
from fedhess.federation.server.global_model import GlobalModel
from fedhess.models.building import build_model

UNLIMITED = {"partition-id": 0, "num-partitions": 4}


def ask(node_config: dict[str, Any], run_config: dict[str, Any], *, message_type: str = protocol.IDENTIFY) -> Message:
    """Ask a node which client it is, or to train the toy's model; the reply says why it does not."""
    payload = GlobalModel(build_model(toy_config()), optimizer_args=None).payload()
    settings = ConfigRecord({protocol.MODEL_ID: payload.model_id, protocol.ROUND: 1})
    content = RecordDict({protocol.MODEL: payload.arrays, protocol.CONFIG: settings})
    grid = InProcessGrid(app, node_configs={1: node_config}, run_config=run_config)
    with run_identity(1):
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type=message_type)])
    grid.close()
    return reply


def reason(reply: Message) -> str:
    if reply.has_content():
        return str(reply.content.config_records[protocol.CONFIG][protocol.REFUSED])
    assert reply.error.code == protocol.BAD_REQUEST
    return reply.error.reason


def is_accepted(reply: Message) -> bool:
    return reply.has_content() and protocol.REFUSED not in reply.content.config_records[protocol.CONFIG]


@pytest.mark.parametrize(
    ("option", "before"),
    [("strategy", ""), ("strategy", "fedhess.strategies.sagm:SAGM+"), ("model", ""), ("domains", "")],
)
def test_a_run_has_a_node_import_no_module_that_it_does_not_list(
    option: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name, was_there = f"loot_of_{option}{len(before)}", tmp_path / "imported"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "code.py").write_text(f"open({str(was_there)!r}, 'w').close()", encoding="utf-8")
    run_config = toy_config().to_run_config() | {option: f"{before}{name}.code:Loot"}
    node = {"domain": "north"}
    said = reason(ask(node, run_config))
    assert said.startswith(
        f"--{option} {name}.code:Loot: this node imports fedhess.strategies, flwr.serverapp.strategy, "
    )
    assert f"and not '{name}.code'; its operator allows it with --node-config 'modules=\"{name}.code\"'" in said
    assert f"and not '{name}.code'" in reason(ask(node | {"modules": f"{name}.cod, {name[:-1]}"}, run_config))
    assert not was_there.exists()
    ask(node | {"modules": f"other,{name}"}, run_config, message_type=protocol.TRAIN)
    assert was_there.exists(), "its operator listed the package"
    was_there.unlink()
    del sys.modules[f"{name}.code"]
    ask(UNLIMITED, run_config, message_type=protocol.TRAIN)
    assert was_there.exists(), "a node without limits imports whatever a run names"


def test_what_comes_with_flower_or_the_project_needs_no_list() -> None:
    for strategy in ("hgp", "fedhess.strategies.irm:IRM", "flwr.serverapp.strategy:FedAvg"):
        assert is_accepted(ask({"domain": "north"}, toy_config(strategy=strategy).to_run_config()))


def test_a_run_has_a_node_open_no_folder_but_the_nodes_own(tmp_path: Path) -> None:
    domains = ("north", "south", "west", "east")
    secret = write_tree(tmp_path / "secret", domains, {"x": 3, "y": 3})
    own = write_tree(tmp_path / "own", ["north"], {"x": 4, "y": 5})
    names = f"side=8,domains={'/'.join(domains)},classes=x/y"
    attacks: list[dict[str, Any]] = [
        {"domains": f"folder:{secret}"},
        {"domains": f"folder:{secret}", "domains-options": names},
        {"domains": "folder:own", "domains-options": f"{names},data_dir={secret}"},
        {"domains": "folder:own", "domains-options": names, "data-dir": str(secret)},
        {"domains": f"hf:{secret}", "domains-options": names},
        {"domains": "hf:imagefolder", "domains-options": names},
        {"domains": f" folder:{secret}"},
        {"domains": f"hf:owner/name?data_dir={secret}"},
    ]
    plain = toy_config(batch_size=2).to_run_config()
    held: dict[str, list[int]] = {}
    for attack in attacks:
        run_config = plain | attack
        assert "this node opens no folder that a run names" in reason(ask({"domain": "north"}, run_config))
        for node in (UNLIMITED, {"domain": "north", "data-dir": str(own)}):
            reply = ask(node, run_config)
            record = reply.content.config_records[protocol.CONFIG] if is_accepted(reply) else {}
            examples = int(record.get("train-examples", 0)) + int(record.get("evaluate-examples", 0))
            held.setdefault(str(node), []).append(examples)
    unlimited, limited = held.values()
    assert max(unlimited) == 6, "the secret"
    assert set(limited) == {0, 9}, "a refusal, or the node's own"
    gone = {"domain": "north", "data-dir": str(tmp_path / "gone")}
    assert "gone: this node has no such folder" in reason(ask(gone, plain))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"batch_size": 4}, "4 (a batch)"),
        ({"batch_size": 15, "local_epochs": 1}, "3 (a batch)"),
        ({"partition": "dirichlet", "clients_per_domain": 8, "dirichlet_min_size": 1}, "(a batch)"),
        ({"domains_options": {"holdout": 0.1}}, "4 (held out)"),
        ({"batch_size": 16, "partition": "lambda", "clients": 3, "heterogeneity": 0.5}, "(a batch)"),
    ],
)
def test_a_run_has_a_node_compute_nothing_from_fewer_examples_than_it_allows(
    settings: dict[str, Any], size: str
) -> None:
    run_config = toy_config(**settings).to_run_config()
    said = reason(ask({"domain": "north", "min-batch-size": 8}, run_config))
    assert said.startswith("this node computes nothing from fewer than 8 examples, got ")
    assert said.endswith(size)
    assert is_accepted(ask({"domain": "north"}, run_config))
    assert is_accepted(ask({"domain": "north", "min-batch-size": 8}, toy_config().to_run_config()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("min-batch-size=0", "min-batch-size: expected a whole number from 1, got 0"),
        ('min-batch-size="8"', "min-batch-size: expected a whole number from 1, got '8'"),
        ("client=-1", "client: expected a whole number from 0, got -1"),
        ("client=true", "client: expected a whole number from 0, got True"),
        ("threads=1.5", "threads: expected a whole number from 0, got 1.5"),
        ("modules=7", "modules: expected names joined by commas, in quotes, got 7"),
    ],
)
def test_a_nodes_own_settings_are_checked_when_it_starts_and_at_each_message(given: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_node_config(given, {"role": "source", "domain": "north"})
    said = reason(ask({"domain": "north", **read_run_config([given])}, toy_config().to_run_config()))
    assert str(refused.value) == said == f"this node's {message}"
