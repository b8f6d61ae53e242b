"""The project as a whole: what is declared, what is packaged, what may stand in a file."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedhess
from fedhess import simulate

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("fedhess",)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_OF_USERS = ("docs", "dev")  # extras that no import of the package may need
MOST_LINES = 450

# Folders of one machine; put together here so that this file does not hold what it looks for.
MACHINE_PATHS = ["/" + folder for folder in ("work/", "root/", "tmp/lab", "home/", "Users/")]
# Nor are package registries named: pip and npm know their own. A lock of uv's names each file's address.
REGISTRIES = ["pypi" + ".org", "python" + "hosted", "npm" + "js.", "deb" + ".debian"]


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Build the wheel from a copy of the checkout, as a user's pip would, but with the setuptools that is installed."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in tracked_files():
        copy = source / file.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(built), str(source)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(built.glob("fedhess-*.whl"))) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def test_a_users_own_folders_take_nothings_place(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    for name in ("strategies", "simulations", "tests", "fedhess_x"):
        (hostile / name).mkdir(parents=True)
        for file in (hostile / name / "__init__.py", hostile / name / "erm.py", hostile / f"{name}.py"):
            file.write_text("raise SystemExit('not this one')", encoding="utf-8")
    (hostile / "fedhess" / "notes").mkdir(parents=True)  # as a checkout in the folder above it is

    command = [sys.executable, "-m", "fedhess.simulate", "--list"]
    listed = subprocess.run(command, cwd=hostile, capture_output=True, text=True, check=True).stdout
    assert listed == CliRunner().invoke(simulate.cli, ["--list"]).stdout
    assert "hutchinson" in listed


def test_version_is_the_same_everywhere() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert version("fedhess") == PROJECT["version"] == fedhess.__version__
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert PROJECT["version"] in changelog


def test_wheel_holds_three_packages_and_nothing_else(wheel_files: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in wheel_files}
    assert tops == {*PACKAGES, f"fedhess-{PROJECT['version']}.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_every_tracked_file_of_a_package(package: str, wheel_files: dict[str, bytes]) -> None:
    wanted = [file for file in tracked_files() if file.is_relative_to(REPOSITORY / package)]
    wanted = [file for file in wanted if not file.is_relative_to(REPOSITORY / "simulations" / "results")]
    missing = [str(file) for file in wanted if file.relative_to(REPOSITORY).as_posix() not in wheel_files]
    assert wanted
    assert not missing


def test_wheel_holds_types_drawings_and_licences(wheel_files: dict[str, bytes]) -> None:
    assert "fedhess/py.typed" in wheel_files
    drawings = [name for name in wheel_files if re.fullmatch(r"fedhess/domains/iconpacs/drawings/.+\.png", name)]
    assert len(drawings) > 100
    assert "fedhess/domains/iconpacs/NOTICE" in wheel_files
    in_metadata = {name.partition("/licenses/")[2] for name in wheel_files if ".dist-info/licenses/" in name}
    texts = (REPOSITORY / "fedhess" / "domains" / "iconpacs" / "licenses").glob("*")
    assert {"LICENSE", "fedhess/domains/iconpacs/NOTICE"} <= in_metadata
    assert {f"fedhess/domains/iconpacs/licenses/{text.name}" for text in texts} <= in_metadata


def test_every_import_is_declared() -> None:
    declared = {normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in PROJECT["dependencies"]}
    groups = [group for extra, group in PROJECT["optional-dependencies"].items() if extra not in NOT_OF_USERS]
    of_extras = {normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for group in groups for requirement in group}
    distributions = packages_distributions()
    undeclared: dict[str, str] = {}
    used: set[str] = set()
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("*.py"):
            for module in imported_modules(file) - {*sys.stdlib_module_names, *PACKAGES}:
                names = {normal(name) for name in distributions.get(module, [module])}
                used |= names
                if not names & (declared | of_extras):
                    undeclared[module] = str(file)
    assert not undeclared
    assert not declared - used, "declared and never imported"


def test_no_file_mentions_a_machine_or_a_registry() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}: {path}"
        for file in tracked_files()
        for path in [*MACHINE_PATHS, *REGISTRIES]
        if path.encode() in file.read_bytes() and (file.name, path in REGISTRIES) != ("uv.lock", True)
    ]
    assert not found


def test_no_python_file_is_too_long() -> None:
    lengths = {
        str(file.relative_to(REPOSITORY)): len(file.read_text(encoding="utf-8").splitlines())
        for file in tracked_files()
        if file.suffix == ".py"
    }
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_ci_and_pre_commit_call_the_tools_of_make() -> None:
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci if line and not line.startswith("#")][-1] == "make test"
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert len(hooks) == 4
    assert all(f"\t$(BIN)/{hook}\n" in makefile for hook in hooks)
