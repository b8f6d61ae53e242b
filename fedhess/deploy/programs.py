"""Flower's programs with the arguments that a fedhess federation needs: what ``fedhess.deploy`` prints and runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhess.base.errors import FederationError, UsageError

if TYPE_CHECKING:  # neither is needed by the small process that starts the programs
    from fedhess.deploy.keys import Keys
    from fedhess.settings.assignments import Scalar

CONNECTION = "deployment"  # name of the SuperLink in the configuration written for Flower's command line
JSON = ["--format", "json"]
# No telemetry, and no check for updates, on which a machine without internet access would wait; tasks start at once.
VARIABLES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}


@dataclass(frozen=True)
class Program:
    """A program, its arguments, and the environment variables that it needs beside those of this process."""

    name: str
    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write the command as one types it into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, self.name, *map(shlex.quote, self.arguments)])

    def environment(self) -> dict[str, str]:
        """Return the whole environment: Flower's programs start one another by name, so their folder is on the path."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {**VARIABLES, **os.environ, "PATH": path, **self.variables}

    def command(self) -> list[str]:
        """Return the command with the program's full path."""
        return [shutil.which(self.name, path=self.environment()["PATH"]) or self.name, *self.arguments]


def superlink(
    keys: "Keys", *, host: str, port: int, database: Path | None = None, further: Sequence[str] = (), **variables: str
) -> Program:
    """``flower-superlink`` with TLS and authenticated nodes; it installs nothing by itself.

    Without a database its state is in memory, and lost when it ends.
    """
    keys.require(keys.ca, keys.server, keys.server_key)
    arguments = ["--ssl-ca-certfile", keys.ca, "--ssl-certfile", keys.server, "--ssl-keyfile", keys.server_key]
    arguments += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    arguments += ["--host", host, "--port", port, *([] if database is None else ["--database", database])]
    return Program("flower-superlink", [*map(str, arguments), *further], variables)


def supernode(
    keys: "Keys",
    *,
    address: str,
    name: str,
    port: int,
    node_config: "Mapping[str, Scalar]",
    more_config: str = "",
    further: Sequence[str] = (),
    **variables: str,
) -> Program:
    """``flower-supernode`` of one domain; ``more_config`` is appended to its node config unchanged."""
    keys.require(keys.ca, keys.node(name))
    settings = " ".join([*(f"{key}={toml(value)}" for key, value in node_config.items()), *filter(None, [more_config])])
    arguments = ["--root-certificates", keys.ca, "--superlink", address]
    arguments += ["--auth-supernode-private-key", keys.node(name), "--port", port, "--node-config", settings]
    return Program("flower-supernode", [*map(str, arguments), *further], variables)


def register(public_key: Path, *, flower_home: Path) -> Program:
    """``flwr supernode register``: register a node's public key at the SuperLink."""
    return flwr("supernode", "register", str(public_key), CONNECTION, *JSON, home=flower_home)


def run(app: Path, *, flower_home: Path, run_config: Sequence[str], stream: bool = True) -> Program:
    """``flwr run``: send the app to the SuperLink and start it; stream its log, or return at once with JSON."""
    settings = [part for text in run_config for part in ("--run-config", text)]
    return flwr("run", str(app), CONNECTION, *settings, *(["--stream"] if stream else JSON), home=flower_home)


def metrics(keys: Path, *, port: int, state: Path) -> Program:
    """``fedhess.deploy status`` of the SuperLink on this machine, for Prometheus."""
    arguments = ["status", "--superlink", f"127.0.0.1:{port}", "--keys", str(keys), "--state", str(state)]
    return Program(sys.executable, ["-m", "fedhess.deploy", *arguments, "--prometheus"])


def flwr(*arguments: str, home: Path) -> Program:
    """``flwr`` with a Flower home of our own, so that the user's is never touched."""
    return Program("flwr", arguments, {"FLWR_HOME": str(home)})


def answer(program: Program) -> dict[str, Any]:
    """Run a Flower command that answers in JSON; raise :class:`FederationError` with Flower's message if it fails."""
    done = subprocess.run(program.command(), env=program.environment(), capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"error-message": done.stderr or done.stdout or f"status {done.returncode}"}
    if not answer.get("success"):
        raise FederationError(f"{program.name} {program.arguments[0]}: {str(answer.get('error-message')).strip()}")
    return answer


def write_connection(flower_home: Path, *, address: str, ca: Path) -> None:
    """Write the ``config.toml`` of a Flower home."""
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f"address = {toml(address)}\nroot-certificates = {toml(str(ca.resolve()))}\n"
    )
    with writing_to(flower_home):
        flower_home.mkdir(parents=True, exist_ok=True)
        (flower_home / "config.toml").write_text(text, encoding="utf-8")


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failure to write below a folder that the user chose into a :class:`UsageError` with advice."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def toml(value: "Scalar") -> str:
    r"""Write a value as Flower's command line reads it: TOML, without escaped quotes.

    >>> toml("a b"), toml('{"alpha": 1}'), toml(True), toml(3)
    ('"a b"', '\'{"alpha": 1}\'', 'true', '3')
    """
    if not isinstance(value, str):
        return repr(value).lower()
    if '"' not in value and "\\" not in value:
        return f'"{value}"'
    if "'" in value:
        raise UsageError(f"expected a text without both kinds of quotes for Flower's command line, got {value!r}")
    return f"'{value}'"


def file_name(domain: str) -> str:
    """Turn a domain's name into a valid file name.

    >>> file_name("Real World"), file_name("+90%")
    ('Real-World', '90')
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", domain).strip("-.") or "node"
