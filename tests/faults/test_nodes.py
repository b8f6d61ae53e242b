"""A SuperNode that is killed is named, the run goes on without it under the quorum rule, and it may come back."""

from pathlib import Path

import pytest
from image_trees import write_tree

from fedhess.deploy.settings import plan_run
from tests.faults.conftest import DOMAINS, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
# Phase -> what the victim's log shows when its message of round 1 has come, how often, and how the failure is named.
PHASES = {
    "exchange 1": (r"Receiving: query\.statistics", 1, "exchange gradient"),
    "exchange 2": (r"Receiving: query\.statistics", 3, "exchange hvp"),  # the first is asked twice: the model is lost
    "train": (r"Receiving: train", 1, "train"),
    "evaluate": (r"Receiving: evaluate ", 2, "evaluate"),  # the model before training is evaluated first
}


def test_a_folder_of_which_each_node_holds_one_domain_and_the_server_none(started: Federation, tmp_path: Path) -> None:
    for domain in DOMAINS:
        started.start_node(domain, data_dir=str(write_tree(tmp_path / f"data of {domain}", [domain], {"x": 4, "y": 4})))
    named = f'domains-options="side=8,domains={"/".join(DOMAINS)},classes=x/y"'
    plan = plan_run("folder:photos", target="sketch", strategy="hgp", rounds=2, run_dir=None, given=[named])
    started.start_run("job", *plan, 'model="mlp" batch-size=4 evaluate-every=1')
    log = started.finish("job", 300)
    assert "fedhess: folder:photos: accuracy (%) on the target domain" in log
    assert started.completed_round("job") == 2
    assert not started.failures("job")


@pytest.mark.parametrize("phase", PHASES)
def test_a_node_killed_in_a_phase_and_gone_is_named_and_the_others_go_on(started: Federation, phase: str) -> None:
    pattern, times, name = PHASES[phase]
    started.start_nodes()
    started.start_run("job", 'rounds=2 evaluate-every=1 quorum=2 strategy="hgp"')
    started.await_log("cartoon", pattern, 240, times=times)
    started.kill("cartoon")
    log = started.finish("job", 600)
    failures = started.failures("job")
    missed = [name] if name == "evaluate" else [name, "evaluate"]
    assert [(found[1], found[2]) for found in failures if found[0] == 1] == [("cartoon", part) for part in missed]
    assert {found[1] for found in failures} == {"cartoon"}
    assert f"round 1, {name}, client cartoon: error 5: Error: Node Unavailable" in log
    assert started.completed_round("job") == 2
    assert "fedhess: round 2, sketch (target): accuracy" in log


def test_without_a_quorum_the_run_stops_with_the_reason_and_keeps_its_rounds(started: Federation) -> None:
    started.start_nodes()
    started.start_run("job", "rounds=5")
    started.await_log("cartoon", r"Receiving: train", 240, times=3)  # the first came twice: the model was lost
    started.kill("cartoon")
    log = started.finish("job", 300)
    assert "round 2: 2 of 3 source clients completed phase 'train', 3 are needed (--quorum)" in log
    assert started.completed_round("job") == 1


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
