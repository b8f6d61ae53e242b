"""``python -m fedhess.deploy run`` ends as the run did, which only the SuperLink knows."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedhess.base.errors import FederationError
from fedhess.deploy.packing import pack_app
from fedhess.deploy.submitted import follow_run, start_run
from tests.faults.conftest import HOST, Federation

APP = """
[build-system]
requires = ["setuptools"]
[project]
name = "idle"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedhess"
[tool.flwr.app.components]
serverapp = "idle.app:server"
clientapp = "idle.app:client"
[tool.flwr.app.config]
"""
CODE = """
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
server = ServerApp()
client = ClientApp()
@server.main()
def main(grid, context):
    print("nothing to do")
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_command_ends_as_the_run_did(
    federation: Federation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    federation.start_superlink()
    address, keys = f"{HOST}:{federation.port}", federation.keys.folder
    command = [sys.executable, "-m", "fedhess.deploy", "run", "--superlink", address, "--keys", str(keys)]
    settings = ["--run-config", "exchange-deadline=1.0"]
    failed = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert "finished:failed" in last
    assert "no client for art_painting, cartoon, photo, sketch after" in last
    assert f"$ FLWR_HOME={keys}/flower flwr list deployment --run-id " in failed.stdout

    (tmp_path / "app" / "idle").mkdir(parents=True)
    (tmp_path / "app" / "pyproject.toml").write_text(APP, encoding="utf-8")
    (tmp_path / "app" / "idle" / "__init__.py").touch()
    (tmp_path / "app" / "idle" / "app.py").write_text(CODE, encoding="utf-8")
    said: list[str] = []
    home = keys / "flower"
    run_id = start_run(tmp_path / "app", flower_home=home, run_config=[], say=said.append)
    follow_run(run_id, flower_home=home, say=said.append)
    assert said[-1].endswith(": finished:completed")
    assert "nothing to do" in capfd.readouterr().out
    with pytest.raises(FederationError, match="flwr run: Failed to load Flower App configuration"):
        start_run(tmp_path / "nothing", flower_home=home, run_config=[], say=said.append)


@pytest.mark.timeout(120)
def test_a_superlink_that_does_not_answer_is_named(federation: Federation, tmp_path: Path) -> None:
    app = pack_app(tmp_path / "packed")
    with pytest.raises(FederationError, match=r"flwr run: (.|\n)*Connection to the SuperLink is unavailable"):
        start_run(app, flower_home=federation.home, run_config=[], say=lambda _: None)
