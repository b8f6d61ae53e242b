"""Who has no business in the federation stays outside, and is told so."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from image_trees import write_tree

from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.processes import free_port
from fedhess.deploy.programs import Program
from tests.faults.conftest import DOMAINS, HOST, Federation


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_unknown_nodes_and_servers_with_another_authority_are_refused(federation: Federation, tmp_path: Path) -> None:
    federation.start_superlink()

    federation.start_node("sketch")  # its key is on no list
    federation.wait(lambda: "sketch" in federation.running.ended(), "the unregistered node ends", 60)
    assert federation.running.ended()["sketch"] != 0
    assert "SuperNode ID" not in federation.log("sketch")

    strange = Keys(tmp_path / "strange")
    make_keys(strange, hosts=["127.0.0.1"], nodes=["photo"], days=1)
    federation.start_node("photo", keys=strange)  # it trusts another authority than the server's
    federation.await_log("photo", "(?i)certificate.verify.failed|Connection attempt failed", 60)
    assert "SuperNode ID" not in federation.log("photo")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_only_nodes_reach_the_superlink_from_outside(federation: Federation, tmp_path: Path) -> None:
    """Who has neither certificate nor key reads the runs at Flower's own port, and nothing through nginx.

    A node that was registered as another client than it answers as is refused, and the run waits for the right one.
    """
    public, state = free_port(), tmp_path / "state"
    command = ["-m", "fedhess.deploy", "superlink", "--keys", str(federation.keys.folder), "--state", str(state)]
    command += ["--host", HOST, "--port", str(public), "--control-port", str(federation.port)]
    command += ["--metrics-port", str(shown_at := free_port())]
    health = free_port()
    command += ["--", "--log-file", "superlink.log", "--health-server-address", f"{HOST}:{health}"]
    federation.running.start("superlink", Program(sys.executable, command, {"FLWR_HOME": str(federation.home)}))
    federation.await_superlink()
    assert ask(federation.port, "/v1/control/list-runs") == 200, "what nginx is there for"
    paths = ("/v1/control/list-runs", "/v1/control/register-node", "/v1/runtime/acquire-task", "/health")
    assert {ask(public, path) for path in paths} == {403}

    make_keys(federation.keys, hosts=[], nodes=["sybil"], days=1)
    address = f"{HOST}:{federation.port}"
    command = ["-m", "fedhess.deploy", "register", "--superlink", address, "--keys", str(federation.keys.folder)]
    subprocess.run([sys.executable, *command, "--state", str(state)], check=True, capture_output=True)
    nodes = json.loads((state / "nodes.json").read_text(encoding="utf-8"))
    assert nodes.keys() == {*DOMAINS, "sybil"}
    for domain in DOMAINS:
        federation.start_node(domain, port=public, key="sybil" if domain == "photo" else "")
    federation.start_run("outside", "rounds=2")
    refused = f"node {nodes['sybil']} takes no part: it answers as client photo, which is node {nodes['photo']}; "
    federation.await_log("run-outside", f"{refused}this one is client sybil", 240)
    federation.start_node("photo", log="photo itself", port=public)
    federation.finish("outside", 500)
    status = ["-m", "fedhess.deploy", "status", "--superlink", address, "--keys", str(federation.keys.folder)]
    shown, metrics = (
        subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout
        for command in ([*status, "--state", str(state)], [*status, "--state", str(state), "--prometheus"])
    )
    for client, node in nodes.items():
        assert re.search(rf"\| {client} +\| {node} +\| online +\| now ", shown), shown
        assert f'fedhess_node_online{{client="{client}",node="{node}"}} 1' in metrics
    assert "| finished:completed |" in shown
    assert 'fedhess_runs{status="finished:completed"} 1' in metrics
    url = f"http://{HOST}:{shown_at}/metrics"
    federation.wait(lambda: httpx.get(url).text == metrics, "the metrics are shown", 150)
    with socket.create_connection((HOST, health), timeout=5):
        pass
    assert "Flower" in (state / "superlink.log").read_text(encoding="utf-8")
    database, others = state / "superlink.db", [file for file in state.rglob("*") if file.is_file()]
    assert database in others
    assert {file.stat().st_mode & 0o077 for file in others} == {0}
    federation.simulate("inside", rounds=2)
    assert federation.weights("outside") == federation.weights("inside")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_run_does_not_get_past_what_a_node_allows_and_is_told(started: Federation, tmp_path: Path) -> None:
    """A batch of one, a module that nodes do not list, a folder of the machine: the run ends with the node's reason.

    At once, and not when the 600 s have passed that it waits for nodes.
    """
    started.start_nodes(min_batch_size=8)
    secret = write_tree(tmp_path / "secret", DOMAINS, {"x": 4, "y": 4})
    attacks = {
        "one": ("batch-size=1", "this node computes nothing from fewer than 8 examples, got 1 (a batch)"),
        "module": ('strategy="strategies.hgp:HGP"', "and not 'strategies.hgp'; its operator allows it with"),
        "folder": (f'domains="folder:{secret}" domains-options="side=8"', "this node opens no folder that a run names"),
    }
    for name, (settings, reason) in attacks.items():
        started.start_run(name, f"rounds=1 {settings}")
        log = started.finish(name, 200)
        nodes = re.findall(rf"node (\d+) takes no part: [^\n]*{re.escape(reason)}", log)
        assert len(set(nodes)) == (1 if name == "one" else 4), log
        assert re.search(rf"node {nodes[0]}: [^\n]*{re.escape(reason)}", log.split("nodes identified themselves")[1])
        assert started.completed_round(name) == -1


def ask(port: int, path: str) -> int:
    """POST an empty message as a stranger does, who checks no certificate; return the status."""
    header = {"content-type": "application/protobuf"}
    return httpx.post(f"https://{HOST}:{port}{path}", verify=False, headers=header, timeout=10).status_code
