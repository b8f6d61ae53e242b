"""A private job from the command line: what is printed, written and kept."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TOY, Outcome

PRIVATE = ["--dp-epsilon", "100", "--dp-delta", "1e-5", "--dp-clip", "update=0.1,statistics=1"]


def test_a_private_job_says_what_was_promised_and_spent(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(*TOY, "--strategy", "erm,hgp", *PRIVATE, "--rounds", "2", "--trials", "1", "--out", "job")
    assert outcome.status == 0, outcome.err
    for expected in (
        "client-level privacy epsilon 100 delta 1e-05 (norms update=0.1, statistics=1)",
        "epsilon spent in one run by the sources (runs with the same data add up):",
        "- hgp: north 100, south 100, west 100; noise from the run's seed, which protects nobody",
        "selection by last round",
    ):
        assert expected in outcome.out
    settings = json.loads(Path("job/config.json").read_text())["settings"]
    assert (settings["dp_epsilon"], settings["dp_clip"]) == (100.0, {"update": 0.1, "statistics": 1.0})
    kept = [file.name for file in Path("job/erm").rglob("selected/*")]
    assert max(kept) == "round-000002.safetensors", "the last round, since no source can say which is best"
