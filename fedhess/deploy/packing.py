"""The Flower app that is deployed: the code of the installed package, as ``flwr run`` sends it to server and nodes."""

import shutil
from pathlib import Path

import fedhess
from fedhess.base.errors import UsageError
from fedhess.deploy.programs import toml
from fedhess.settings.assignments import Scalar
from fedhess.settings.run_config import RunConfig

RUN_DIR = "run-dir"  # key of the run config: the job directory, on the SuperLink's machine
RESUME_FROM = "resume-from"  # key of the run config: the round from which the job there continues
DEFAULTS: dict[str, Scalar] = {
    "domains": "IconPACS",
    "sources": "art_painting,cartoon,photo",
    "targets": "sketch",
    "model": "lite0-features",
    "pretrained": True,
    "strategy": "hgp",
    "device": "auto",
    "seed": 0,
}
PYPROJECT = """[project]
name = "fedhess"
version = {version}
description = "The installed package as a Flower app"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedhess"
fab-include = ["fedhess/**/*.py"]

[tool.flwr.app.components]
serverapp = "fedhess.deploy.app:app"
clientapp = "fedhess.federation.client.app:app"

[tool.flwr.app.config]
{config}
"""


def app_config() -> dict[str, Scalar]:
    """Return every key of the run config with its default; an empty text means the default of benchmark and model.

    >>> app_config()["strategy"], app_config()["server-lr"]
    ('hgp', '')
    """
    keys = [key.replace("_", "-") for key in RunConfig.model_fields]
    return dict.fromkeys([*keys, RUN_DIR, RESUME_FROM], "") | DEFAULTS


def pack_app(folder: Path) -> Path:
    """Write the app into a folder, replacing its contents; ``flwr run`` sends the Python files."""
    unsent = shutil.ignore_patterns("__pycache__", "simulations", "drawings", "licenses")
    config = "\n".join(f"{key} = {toml(value)}" for key, value in app_config().items())
    try:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(fedhess.__file__).parent, folder / "fedhess", ignore=unsent)
        text = PYPROJECT.format(version=toml(fedhess.__version__), config=config)
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the app to {folder}: {error}; choose another folder") from error
    return folder
