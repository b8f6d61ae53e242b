"""What the SuperLink's database holds after a run."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedhess.deploy.database import forget_runs
from tests.faults.conftest import Federation


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_of_the_model_is_left_after_a_run(federation: Federation) -> None:
    federation.start_superlink()
    federation.register()
    federation.start_nodes()
    federation.start_run("job", "rounds=1")
    federation.finish("job", 500)
    weights = load_file(max((federation.folder / "job").rglob("checkpoint/*.safetensors")))["model/head.weight"]
    sent = weights.numpy().tobytes()[:256]
    database = federation.folder / "superlink.db"
    assert sent in everything(database), "the write-ahead log has what was deleted"
    federation.wait(lambda: forget_runs(database) == 1, "the run is forgotten", 30)
    assert sent not in everything(database)
    assert "superlink" not in federation.running.ended()


def everything(database: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(database.parent.glob(database.name + "*")))
