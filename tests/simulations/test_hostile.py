"""The attacks are real, their tally tells honest from hostile, and recorded runs become tables."""

import pytest

from fedhess.federation.client import memory
from fedhess.simulations.hostile import Recording, attack_once, norms_once, render


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    memory.MEMORY.clear()


@pytest.mark.slow
def test_an_attack_is_run_and_shown_with_whom_it_named() -> None:
    runs = {
        f"one of three|erm|{attack}|mean|0": attack_once("one of three", "erm", "mean", attack, 0, 2)
        for attack in ("honest", "update x100", "label flip", "eclipse x-10")
    }
    honest, scaled, flipped, eclipsed = runs.values()
    assert (honest["hostile"], honest["honest"]) == ([], [])
    assert (scaled["hostile"], scaled["honest"]) == (["cartoon"], [])
    assert (flipped["hostile"], flipped["honest"]) == ([], [])
    assert eclipsed["honest"] == []
    assert len({result.get("accuracy") for result in (honest, scaled, flipped)}) == 3
    environment = {"platform": "here", "cpu_count": 2, "versions": {"torch": "2", "flwr": "1"}, "git_revision": "abc"}
    table = render({"attacks": {"environment": environment, "runs": runs}})
    assert "## one of three, erm" in table
    assert "*1* named" in next(line for line in table.splitlines() if line.startswith("| update x100"))


def test_norms_of_an_honest_run_are_recorded_against_the_median_that_the_bound_has() -> None:
    bound = Recording()
    for norms in ((1.0, 2.0, 6.0), (0.1, 0.1, 9.0)):
        passed = list(bound.screen(list(enumerate(norms)), lambda _, n: {"update": n}, lambda *_: None, asked=3))
        assert len(passed) == 3
    assert bound.largest == {"update": 4.5}


@pytest.mark.slow
def test_norms_are_measured_on_a_whole_run() -> None:
    assert norms_once("IconPACS", "hgp", 0).keys() == {"gradient", "hvp", "update"}
