"""A whole federation on this machine: SuperLink and one SuperNode a client on loopback, with TLS and authentication."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from fedhess.base.errors import FederationError
from fedhess.deploy import programs
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.packing import pack_app
from fedhess.deploy.processes import Processes, free_port, require_free
from fedhess.deploy.programs import Program
from fedhess.deploy.settings import Plan
from fedhess.federation.client.node import Place
from fedhess.settings.run_config import Scalar

HOST = "127.0.0.1"
START_SECONDS = 60.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class LocalFederation:
    """A folder with keys, logs, Flower's own files and the job directory; port 0 takes a free one."""

    folder: Path
    port: int
    data_dir: Path | None
    say: Callable[[str], None]

    @property
    def results(self) -> Path:
        """The job directory."""
        return self.folder / "results"

    def run(self, plan: Plan, nodes: Sequence[Place], *, running: Processes) -> None:
        """Start everything, run the app, and return when it has ended.

        Raises:
            UsageError: The port is taken.
            FederationError: A process ended too early, or the run failed; the message has the end of its log.
        """
        port = self.port or free_port(HOST)
        require_free(HOST, port)
        names = [f"{number}-{programs.file_name(node.domain)}" for number, node in enumerate(nodes)]
        keys, home = Keys(self.folder / "keys"), self.folder / "flower"
        make_keys(keys, hosts=[HOST], nodes=names, days=30)
        programs.write_connection(home, address=f"{HOST}:{port}", ca=keys.ca)
        app = pack_app(self.folder / "fedhess")

        link = programs.superlink(keys, host=HOST, port=port, database=self.folder / "superlink.db")
        self._start(running, "superlink", _at_home(link, home))
        self._await(running, keys, port)
        for name in names:
            self._start(running, f"register-{name}", programs.register(keys.public(name), flower_home=home))
        self._await_end(running, [f"register-{name}" for name in names])
        for number, (node, name) in enumerate(zip(nodes, names, strict=True)):
            own: dict[str, Scalar] = {"partition-id": number, "num-partitions": len(nodes)}
            own |= {"role": node.role, "domain": node.domain, "client": node.client}
            own |= {} if self.data_dir is None else {"data-dir": str(self.data_dir.resolve())}
            program = programs.supernode(
                keys, address=f"{HOST}:{port}", name=name, port=free_port(HOST), node_config=own
            )
            self._start(running, name, _at_home(program, home))
        self._start(running, "run", programs.run(app, flower_home=home, run_config=plan.run_config), show=True)
        self._await_end(running, ["run"])

    def _start(self, running: Processes, name: str, program: Program, *, show: bool = False) -> None:
        self.say(f"$ {program}")
        running.start(name, program, show=show)

    def _await(self, running: Processes, keys: Keys, port: int) -> None:
        context = ssl.create_default_context(cafile=str(keys.ca))
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if running.ended():
                break
            try:
                if httpx.get(f"https://{HOST}:{port}/health", verify=context, timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(POLL_SECONDS)
        tail = running.tail("superlink")
        raise FederationError(f"the SuperLink does not answer: {running.log('superlink')} ends{tail}")

    def _await_end(self, running: Processes, names: list[str]) -> None:
        reported: set[str] = set()
        while True:
            ended = running.ended()
            for name, status in ended.items():
                if name == "superlink" or (name in names and status != 0):
                    tail = running.tail(name)
                    raise FederationError(f"{name} ended with status {status}: {running.log(name)} ends{tail}")
                if status != 0 and name not in reported:
                    self.say(f"node {name} ended with status {status}: see {running.log(name)}")
                    reported.add(name)
            if all(name in ended for name in names):
                return
            time.sleep(POLL_SECONDS)


def _at_home(program: Program, home: Path) -> Program:
    return Program(program.name, program.arguments, {**program.variables, "FLWR_HOME": str(home)})
