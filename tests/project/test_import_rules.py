"""The import rules of pyproject.toml hold, and each of them notices when it is broken."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import flwr
import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("fedhess",)
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, links followed, to break."""
    for file in [*(REPOSITORY / "fedhess").rglob("*.py"), *(REPOSITORY / "strategies").rglob("*.py"),
                 *(REPOSITORY / "simulations").rglob("*.py")]:  # fmt: skip
        inside = file.relative_to(REPOSITORY)
        target = tmp_path / (inside if inside.parts[0] == "fedhess" else Path("fedhess") / inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def broken_rules(folder: Path) -> list[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    broken = re.findall(r"^(.+) BROKEN\b", done.stdout, re.M)
    assert (done.returncode == 0) == (not broken)
    return broken


def append(file: Path, line: str) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")


def test_every_rule_holds(copy: Path) -> None:
    assert broken_rules(copy) == []


LAYERS = "a package imports only from the layers below it"


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("base/errors.py", "import fedhess.settings.run_config", LAYERS),
        ("domains/domain.py", "import fedhess.federation.client.memory", LAYERS),
        ("alignment/strategy.py", "def late() -> None:\n    import fedhess.federation.server.app", LAYERS),
        ("jobs/plan.py", "import fedhess.results.summary", LAYERS),
        ("strategies/erm.py", "import fedhess.models.mlp", "strategies import only"),
        ("base/errors.py", "import fedhess.strategies.erm", "strategies are found by name"),
        ("federation/client/app.py", "import fedhess.federation.server.clients", "client, server and engines"),
        ("federation/engines/ray.py", "import fedhess.federation.client.app", "client, server and engines"),
        ("federation/client/app.py", "from flwr.common import Context", "private Flower names"),
        ("domains/domain.py", "from flwr.proto.node_pb2 import NodeInfo", "private Flower names"),
        ("strategies/hgp.py", "from flwr.server.strategy import FedAvg", "private Flower names"),
    ],
)
def test_breaking_a_rule_is_noticed(copy: Path, file: str, line: str, rule: str) -> None:
    append(copy / "fedhess" / file, line)
    assert any(broken.startswith(rule) for broken in broken_rules(copy))


def test_cycle_among_strategies_is_noticed(copy: Path) -> None:
    append(copy / "fedhess/strategies/erm.py", "import fedhess.strategies.hgp")
    append(copy / "fedhess/strategies/hgp.py", "import fedhess.strategies.erm")
    (broken,) = broken_rules(copy)
    assert broken.startswith("no import cycles")


def test_every_private_part_of_flower_is_forbidden() -> None:
    rules = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    forbidden = next(set(rule["forbidden_modules"]) for rule in rules["contracts"] if "private Flower" in rule["name"])
    here = Path(flwr.__file__).parent
    parts = {f"flwr.{entry.name}" for entry in here.iterdir() if (entry / "__init__.py").exists()}
    assert forbidden == parts - PUBLIC_FLOWER


def test_no_package_is_imported_by_what_it_imports() -> None:
    """The siblings rule does not look at a package and its own modules: follow every import from every module."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    cyclic = {
        module
        for module in graph.modules
        if any(graph.chain_exists(imported, module) for imported in graph.find_modules_directly_imported_by(module))
    }
    assert not cyclic
