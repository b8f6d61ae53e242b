"""Who has no business in the federation stays outside, and is told so."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

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
    database, others = state / "superlink.db", [file for file in state.rglob("*") if file.is_file()]
    assert database in others
    assert {file.stat().st_mode & 0o077 for file in others} == {0}
    inside = ["-m", "fedhess.simulate", "--domains", "IconPACS", "--target", "sketch", "--strategy", "erm"]
    inside += ["--rounds", "2", "--trials", "1", "--local-steps", "2", "--evaluate-every", "100", "--threads", "1"]
    inside += ["--device", "cpu", "--out", str(tmp_path / "inside")]
    subprocess.run([sys.executable, *inside], check=True, capture_output=True)
    assert federation.weights("outside") == federation.weights("inside")


def ask(port: int, path: str) -> int:
    """POST an empty message as a stranger does, who checks no certificate; return the status."""
    header = {"content-type": "application/protobuf"}
    return httpx.post(f"https://{HOST}:{port}{path}", verify=False, headers=header, timeout=10).status_code
