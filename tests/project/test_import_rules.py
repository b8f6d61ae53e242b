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


def broken_rules(folder: Path) -> dict[str, str]:
    """Return what is reported of each broken rule."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    _, *parts = re.split(r"^(.+)\n-{5,}\n", done.stdout.partition("Broken contracts")[2], flags=re.M)
    broken = dict(zip(parts[::2], parts[1::2], strict=True))
    assert (done.returncode == 0) == (not broken)
    return broken


def append(file: Path, line: str) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")


def test_every_rule_holds(copy: Path) -> None:
    assert not broken_rules(copy)


LAYERS, CYCLES = "a package imports only from the layers below it", "no import cycles"
FLOWER, SIBLINGS = "private Flower names", "client, server and engines"
BREAKS = [
    ("base/errors.py", "import fedhess.settings.run_config", LAYERS, "base.errors -> fedhess.settings.run_config"),
    ("domains/domain.py", "import fedhess.federation.client.memory", LAYERS, "domain -> fedhess.federation.client"),
    (
        "alignment/strategy.py",
        "def late():\n    import fedhess.federation.server.app",
        LAYERS,
        "strategy -> fedhess.f",
    ),
    ("jobs/plan.py", "import fedhess.results.summary", LAYERS, "jobs.plan -> fedhess.results.summary"),
    ("strategies/erm.py", "import fedhess.models.mlp", "strategies import only", "erm -> fedhess.models.mlp"),
    (
        "base/errors.py",
        "import fedhess.strategies.erm",
        "strategies are found by name",
        "errors -> fedhess.strategies.erm",
    ),
    (
        "federation/client/app.py",
        "import fedhess.federation.server.clients",
        SIBLINGS,
        "app -> fedhess.federation.server",
    ),
    ("federation/engines/ray.py", "import fedhess.federation.client.app", SIBLINGS, "ray -> fedhess.federation.client"),
    ("federation/client/app.py", "from flwr.common import Context", FLOWER, "client.app -> flwr.common"),
    ("domains/domain.py", "from flwr.proto.node_pb2 import NodeInfo", FLOWER, "domains.domain -> flwr.proto"),
    ("strategies/hgp.py", "from flwr.server.strategy import FedAvg", FLOWER, "strategies.hgp -> flwr.server"),
    ("strategies/hgp.py", "import fedhess.strategies.iga", CYCLES, "No cycles are allowed in fedhess.strategies"),
    ("strategies/iga.py", "import fedhess.strategies.hgp", CYCLES, "No cycles are allowed in fedhess.strategies"),
]


def test_breaking_a_rule_is_noticed(copy: Path) -> None:
    for file, line, _, _ in BREAKS:
        append(copy / "fedhess" / file, line)
    broken = broken_rules(copy)
    for _, line, rule, report in BREAKS:
        assert any(title.startswith(rule) and report in text for title, text in broken.items()), line


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
