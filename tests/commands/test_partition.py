"""The command with many clients: what it shows, writes, continues and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_trees import write_tree
from toy import SOURCES, toy_config

from fedhess.base.errors import UsageError
from fedhess.federation.client.examples import source_shares
from fedhess.jobs.partition_manifest import partition_digest
from tests.conftest import TOY, Outcome

Command = Callable[..., Outcome]
MIXED = ["--partition", "lambda", "--clients", 7, "--heterogeneity", 0.5]
DIRICHLET = ["--partition", "dirichlet", "--clients-per-domain", 3, "--dirichlet-alpha", 0.5, "--dirichlet-min-size", 2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_show_partition_prints_who_holds_what_and_runs_nothing(command: Command) -> None:
    outcome = command(*TOY, *MIXED, "--show-partition", "--trials", 2, "--out", "job")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("7 clients, heterogeneity lambda 0.5; by class: training examples") == 2
    assert "Toy, target east, seed 1" in outcome.out
    lines = [line for line in outcome.out.splitlines() if line.startswith("| north[1] ")]
    assert [line.split("|")[2].strip() for line in lines] == [*SOURCES, *SOURCES]
    assert not Path("job").exists()


def test_shown_partition_is_the_one_that_is_saved_and_run(command: Command) -> None:
    shown = command(*TOY, *MIXED, "--show-partition", "--json", "--strategy", "erm,hgp")
    (manifest,) = json.loads(shown.out)
    outcome = command(*TOY, *MIXED, "--strategy", "erm", "--quiet", "--out", "job")
    assert outcome.status == 0, outcome.err
    saved = json.loads(Path("job/east/0/partition.json").read_text(encoding="utf-8"))
    assert {"title": "Toy, target east, seed 0", **saved} == manifest
    config = toy_config(domains_options={"holdout": 0.25}, partition="lambda", clients=7, heterogeneity=0.5)
    assert saved["digest"] == partition_digest(list(source_shares(config).values()))
    held = [sum(sum(own["train"].values()) for own in client["holds"].values()) for client in saved["held_by"]]
    assert sum(held) == 3 * 36, "every training example once"
    classes = {name for client in saved["held_by"] for own in client["holds"].values() for name in own["train"]}
    assert classes == {f"class {number}" for number in range(4)}
    trained = [row for row in rows(Path("job/east/0/rounds.jsonl")) if row["train_loss"] is not None]
    assert len(trained) == 7 * 3


def test_a_partition_is_shown_without_the_weights_that_a_run_needs(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path("torch").resolve()))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    root = write_tree(Path("mine"), ["a", "b", "c"], {"x": 4, "y": 4})
    arguments = ["--domains", f"folder:{root}", "--target", "a", "--trials", 1, *MIXED, "--clients", 3]
    refused = command(*arguments)
    assert refused.status == 2
    assert "--model resnet18: resnet18 needs its ImageNet weights and they cannot be loaded" in refused.err
    shown = command(*arguments, "--show-partition")
    assert (shown.status, shown.err) == (0, "")
    assert "folder:mine, target a, seed 0: 3 clients" in shown.out
    misfit = command(*TOY, "--show-partition", "--model", "resnet18")
    assert misfit.status == 2
    assert "--model resnet18: resnet18 takes RGB images" in misfit.err, "what does not fit is still refused"


def test_one_client_a_domain_has_a_manifest_too(command: Command) -> None:
    assert command(*TOY, "--quiet", "--out", "job").status == 0
    saved = json.loads(Path("job/east/0/partition.json").read_text(encoding="utf-8"))
    assert [(client["client"], list(client["holds"])) for client in saved["held_by"]] == [(n, [n]) for n in SOURCES]
    assert saved["described"] == "one client a domain"
    config = json.loads(Path("job/config.json").read_text(encoding="utf-8"))
    assert config["settings"]["partition"] == "domain"


def test_header_and_table_name_the_partition(command: Command) -> None:
    outcome = command(*TOY, *DIRICHLET, "--clients-per-round", 4, "--out", "job")
    assert outcome.status == 0, outcome.err
    said = "3 clients a domain, Dirichlet alpha 0.5, 4 of 9 clients drawn a round"
    assert f"partition   {said}" in outcome.out
    assert f"3 source domains, {said}, 3 rounds" in outcome.out
    assert json.loads(Path("job/config.json").read_text(encoding="utf-8"))["settings"]["clients_per_round"] == 4


def test_an_interrupted_job_continues_with_the_same_partition_and_no_other(command: Command) -> None:
    arguments = [*TOY, *MIXED, "--clients-per-round", 4, "--quiet"]
    assert command(*arguments, "--out", "job").status == 0
    index = Path("job/east/0/checkpoint/checkpoint.json")
    assert json.loads(index.read_text(encoding="utf-8"))["round"] == 3
    assert command(*arguments, "--out", "job", "--resume").status == 0
    refused = command(*arguments, "--heterogeneity", 0.25, "--out", "job", "--resume")
    assert refused.status == 2
    assert "settings.heterogeneity: 0.5 there, 0.25 now" in refused.err
    manifest = Path("job/east/0/partition.json")
    index.unlink()  # as if it had been interrupted in its first round
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digest": "0" * 64}), encoding="utf-8")
    other = command(*arguments, "--out", "job", "--resume")
    assert other.status == 2
    assert "the run was begun with the partition of digest 000000000000, here it is" in other.err
    manifest.write_text("{", encoding="utf-8")
    assert "partition.json is damaged" in command(*arguments, "--out", "job", "--resume").err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--clients", 5], "--clients: it belongs to --partition lambda, got 5 with --partition domain"),
        (["--heterogeneity", 0.1], "--heterogeneity: it belongs to --partition lambda, got 0.1 with"),
        ([*MIXED, "--clients-per-domain", 2], "--clients-per-domain: it belongs to --partition dirichlet, got 2 with"),
        ([*DIRICHLET, "--clients", 5], "--clients: it belongs to --partition lambda, got 5 with --partition dirichlet"),
        (["--dirichlet-alpha", 0.1], "--dirichlet-alpha: it belongs to --partition dirichlet, got 0.1"),
        (["--dirichlet-min-size", 3], "--dirichlet-min-size: it belongs to --partition dirichlet, got 3"),
        (["--partition", "lambda"], "--partition lambda: expected --clients, the number of clients that share"),
        (["--partition", "dirichlet"], "--partition dirichlet: expected --clients-per-domain, the clients that share"),
        (["--partition", "iid"], "--partition: expected 'domain', 'lambda' or 'dirichlet', got 'iid'"),
        ([*MIXED, "--heterogeneity", 2], "--heterogeneity: expected at most 1, got 2.0"),
        (["--clients-per-round", 4], "--clients-per-round: expected at most 3, the number of source clients, got 4"),
        ([*MIXED, "--clients", 200], "--clients 200: the 108 training examples of north, south, west leave 92 clients"),
        ([*DIRICHLET, "--dirichlet-min-size", 30], "--clients-per-domain 3: the 36 training examples of 'north'"),
        ([*MIXED, "--batch-size", 2], "--batch-size: expected at least 3, since a client holds 3 domains"),
        ([*MIXED, "--quorum", 8], "--quorum: expected at most 7, the number of source clients, got 8"),
        (["--quorum", 3, "--clients-per-round", 2], "--quorum: expected at most 2, the clients drawn a round"),
    ],
)
def test_what_is_impossible_is_named_before_anything_is_written(
    command: Command, given: list[object], message: str
) -> None:
    outcome = command(*TOY, *given, "--out", "job")
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert not Path("job").exists()


def test_settings_of_a_partition_survive_the_wire() -> None:
    config = toy_config(partition="lambda", clients=12, heterogeneity=0.1, clients_per_round=5)
    assert config.source_clients == 12
    assert config.checked(config.given_in(config.to_run_config())) == config
    with pytest.raises(UsageError, match="--clients-per-round: expected at most 12"):
        config.checked(config.given_in(config.to_run_config() | {"clients-per-round": 13}))
