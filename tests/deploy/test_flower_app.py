"""The Flower app: every setting is a run config, the bundle is code alone, and it runs beside an installed package."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedhess.alignment.loading import resolved_args
from fedhess.domains import open_benchmark
from fedhess.federation.run_settings import settings_of_run
from fedhess.jobs.plan import plan_job
from tests.project.test_project import REPOSITORY, tracked_files

APP = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
MOST_BYTES = 1_400_000
# Runs with the bundle's code first, as a SuperNode does: whose code is it, and are its drawings found?
PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import fedhess, strategies
from fedhess.domains.iconpacs import drawings_folder, read_drawings
print(fedhess.__file__, strategies.__file__, drawings_folder(), sum(map(len, read_drawings("sketch").values())))
"""


def test_the_apps_defaults_are_those_of_the_command(tmp_path: Path) -> None:
    job = plan_job(
        open_benchmark("IconPACS"),
        strategies=["hgp"],
        strategy_args={},
        target="sketch",
        trials=1,
        overrides={"device": "cpu"},
        out=tmp_path,
    )
    config = settings_of_run(APP["config"] | {"device": "cpu"})
    args = {"strategy_args": resolved_args(config.strategy, config.strategy_args)}
    assert config.model_copy(update=args) == job.runs[0].config


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the bundle from a copy of the tracked files, with Flower's own command."""
    source, built = tmp_path_factory.mktemp("checkout") / "fedhess", tmp_path_factory.mktemp("bundle")
    for file in tracked_files():
        copy = source / file.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    flwr = Path(sys.executable).with_name("flwr")
    done = subprocess.run(
        [str(flwr), "build", "--app", str(source)], cwd=built, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing the following" not in done.stdout + done.stderr
    (found,) = built.glob("*.fab")
    return found


def test_the_bundle_is_code_and_small(bundle: Path) -> None:
    assert bundle.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(bundle) as packed:
        names = set(packed.namelist())
    assert {Path(name).suffix for name in names if name.startswith(("fedhess/", "strategies/"))} == {".py"}
    code = {file.relative_to(REPOSITORY).as_posix() for file in tracked_files() if file.suffix == ".py"}
    assert {name for name in names if name.endswith(".py")} == {
        name for name in code if name.startswith(("fedhess/", "strategies/"))
    }


def test_the_bundles_code_finds_the_installed_drawings(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as packed:
        packed.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    code, strategies, drawings, count = done.stdout.split()
    assert Path(code).is_relative_to(tmp_path)
    assert Path(strategies).is_relative_to(tmp_path)
    assert not Path(drawings).is_relative_to(tmp_path)
    assert int(count) > 20
