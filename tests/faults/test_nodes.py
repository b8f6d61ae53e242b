"""A SuperNode that is killed is named, the run goes on without it under the quorum rule, and it may come back."""

from pathlib import Path

import pytest
from image_trees import write_tree

from fedhess.deploy.settings import plan_run
from tests.faults.conftest import DOMAINS, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_folder_of_which_each_node_holds_one_domain_and_the_server_none(started: Federation, tmp_path: Path) -> None:
    for domain in DOMAINS:
        started.start_node(domain, data_dir=str(write_tree(tmp_path / f"data of {domain}", [domain], {"x": 4, "y": 4})))
    named = f'domains-options="side=8,domains={"/".join(DOMAINS)},classes=x/y"'
    plan = plan_run("folder:photos", target="sketch", strategy="hgp", rounds=1, run_dir=None, given=[named])
    started.start_run("job", *plan, 'model="mlp" batch-size=4 evaluate-every=1')
    log = started.finish("job", 300)
    assert "fedhess: folder:photos: accuracy (%) on the target domain" in log
    assert started.completed_round("job") == 1
    assert not started.failures("job")


def test_nodes_killed_in_an_exchange_and_in_evaluation_are_named_and_the_others_go_on(started: Federation) -> None:
    started.start_nodes()
    started.start_run("job", 'rounds=2 evaluate-every=1 quorum=1 strategy="hgp"')
    started.await_log("cartoon", r"Receiving: query\.statistics", 240, times=3)  # the first came twice: no model yet
    started.kill("cartoon")
    started.await_log("photo", r"Receiving: evaluate ", 240, times=2)
    started.kill("photo")
    log = started.finish("job", 600)
    failures = started.failures("job")
    first = {found[1:3] for found in failures if found[0] == 1}
    assert first == {("cartoon", "exchange hvp"), ("cartoon", "evaluate"), ("photo", "evaluate")}
    assert {found[1] for found in failures} == {"cartoon", "photo"}
    assert "round 1, exchange hvp, client cartoon: error 5: Error: Node Unavailable" in log
    assert started.completed_round("job") == 2
    assert "fedhess: round 2, sketch (target): accuracy" in log


@pytest.mark.parametrize("seconds", [2, 60])
def test_a_node_that_comes_back_takes_part_again(started: Federation, seconds: int) -> None:
    """Within the heartbeat's window it is refused at first; after it, at once welcome; its id is the same.

    A message that it was working on is lost. The server hears that at once if it asks while the SuperLink misses the
    node; if the node is back before it asks, as one that tries all the time may be, only by the deadline.
    """
    started.start_nodes()
    started.start_run("job", "rounds=14 quorum=2 deadline=90.0")
    started.await_log("cartoon", r"Receiving: train", 240, times=2)
    started.kill("cartoon")
    gone = [0]

    def wait_a_little() -> bool:
        gone[0] += 1
        return gone[0] > seconds / 0.2

    started.wait(wait_a_little, "the node stays away", seconds + 60)
    attempt = 1
    started.start_node("cartoon", log="cartoon-1")
    while "SuperNode ID" not in started.log(f"cartoon-{attempt}"):
        if f"cartoon-{attempt}" in started.running.ended():
            attempt += 1
            assert attempt < 30, "it is refused for ever"
            started.start_node("cartoon", log=f"cartoon-{attempt}")
        started.wait(lambda: True, "", 1)
    assert (attempt > 1) == (seconds < 40)
    before, after = (
        started.log(name).split("SuperNode ID: ")[1].split()[0] for name in ("cartoon", f"cartoon-{attempt}")
    )
    assert before == after
    started.finish("job", 600)
    failed = [found[0] for found in started.failures("job")]
    assert failed
    assert {found[1] for found in started.failures("job")} == {"cartoon"}
    known = ("Node Unavailable", "no reply within 90 s") if seconds < 40 else ("Node Unavailable",)
    assert all(any(reason in found[3] for reason in known) for found in started.failures("job"))
    assert max(failed) < 14, "it has come back"
    assert "Receiving: train" in started.log(f"cartoon-{attempt}")
    assert started.completed_round("job") == 14
