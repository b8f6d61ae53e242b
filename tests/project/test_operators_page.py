"""The units and the compose file of docs/operators.md are what systemd, YAML and the commands take."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from fedhess.deploy.__main__ import cli

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
UNITS = dict(zip(("superlink", "node"), re.findall(r"^```ini\n(.*?)^```$", PAGE, re.S | re.M), strict=True))
(COMPOSE,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.S | re.M)
ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSED = 3.0  # of 10, by systemd's own count; a unit without limits has 9.2


def test_every_printed_command_is_one_of_ours() -> None:
    ours = typer.main.get_command(cli)
    printed = re.findall(r"python -m fedhess\.deploy ([^`\n>]+)", PAGE)
    assert {command.split()[0] for command in printed} == {"superlink", "supernode", "register", "status"}
    for command in printed:
        name, *arguments = shlex.split(command)
        ours.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units_and_finds_them_closed(name: str, tmp_path: Path) -> None:
    unit = tmp_path / f"fedhess-{name}.service"
    unit.write_text(UNITS[name].replace("/opt/fedhess/bin/python", sys.executable), encoding="utf-8")
    found = subprocess.run([str(ANALYZE), "verify", unit], capture_output=True, text=True, check=False)
    assert unit.name not in found.stderr, found.stderr
    command = [str(ANALYZE), "security", "--offline=yes", f"--threshold={10 * MOST_EXPOSED:.0f}", unit]
    exposed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert exposed.returncode == 0, exposed.stdout
    told = ("User=fedhess", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077", "Restart=always")
    for line in (*told, "WantedBy=multi-user.target"):
        assert line in UNITS[name].splitlines()


def test_containers_of_the_compose_file_can_write_their_state_alone() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    assert services.keys() == {"superlink", "node"}
    for service in services.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "\nUSER fedhess" in service["build"]["dockerfile_inline"]
    assert services["superlink"]["ports"] == ["8000:8000"], "the operator's port is not published"
    assert "./data:/data:ro" in services["node"]["volumes"]
