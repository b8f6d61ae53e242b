"""The Flower app: every setting is a run config, the bundle is code alone, and it runs beside an installed package."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from forked import fork, wait

from fedhess.alignment.loading import resolved_args
from fedhess.domains import open_benchmark
from fedhess.federation.run_settings import settings_of_run
from fedhess.jobs.plan import plan_job
from tests.project.test_project import REPOSITORY, tracked_files

APP = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
MOST_BYTES = 1_600_000


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

    def probe() -> None:
        """Import with the bundle's code first, as a SuperNode does: whose is it, and are its drawings found?"""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("fedhess", "strategies")]:
            del sys.modules[name]
        sys.path.insert(0, str(tmp_path))
        code, strategies = import_module("fedhess").__file__, import_module("strategies").__file__
        iconpacs = import_module("fedhess.domains.iconpacs")
        count = sum(map(len, iconpacs.read_drawings("sketch").values()))
        (tmp_path / "found").write_text(f"{code} {strategies} {iconpacs.drawings_folder()} {count}", encoding="utf-8")

    assert wait(fork(probe)) == 0
    code, strategies, drawings, count = (tmp_path / "found").read_text(encoding="utf-8").split()
    assert Path(code).is_relative_to(tmp_path)
    assert Path(strategies).is_relative_to(tmp_path)
    assert not Path(drawings).is_relative_to(tmp_path)
    assert int(count) > 20
