"""Who has no business in the federation stays outside, and is told so."""

from pathlib import Path

import pytest

from fedhess.deploy.keys import Keys, make_keys
from tests.faults.conftest import Federation


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
