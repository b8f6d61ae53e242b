"""A whole federation on this machine: SuperLink and a SuperNode per client on loopback, with TLS and authentication."""

import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from fedhess.base.errors import FederationError
from fedhess.deploy import programs
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.packing import pack_app
from fedhess.deploy.processes import Processes, free_port, require_free
from fedhess.deploy.programs import Program
from fedhess.federation.client.call import Place
from fedhess.settings.assignments import Scalar

HOST = "127.0.0.1"
START_SECONDS = 180.0
POLL_SECONDS = 0.2


def run_locally(
    folder: Path,
    run_config: Sequence[str],
    nodes: Sequence[Place],
    *,
    port: int,
    data_dir: Path | None,
    running: Processes,
    say: Callable[[str], None],
) -> None:
    """Start SuperLink and SuperNodes, run the app, and return when it has ended.

    Raises:
        UsageError: The port is taken.
        FederationError: A process ended too early, or the run failed; the message has the end of its log.
    """

    def start(name: str, program: Program, *, show: bool = False) -> None:
        say(f"$ {program}")
        running.start(name, program, show=show)

    port = port or free_port(HOST)
    require_free(HOST, port)
    address, keys, home = f"{HOST}:{port}", Keys(folder / "keys"), folder / "flower"
    names = [f"{number}-{programs.file_name(node.domain)}" for number, node in enumerate(nodes)]
    make_keys(keys, hosts=[HOST], nodes=names, days=30)
    programs.write_connection(home, address=address, ca=keys.ca)
    app = pack_app(folder / "fedhess")

    start("superlink", programs.superlink(keys, host=HOST, port=port, FLWR_HOME=str(home)))
    _await_superlink(running, f"https://{address}/health", keys)
    for name in names:
        start(f"register-{name}", programs.register(keys.public(name), flower_home=home))
    _await_end(running, [f"register-{name}" for name in names], say)
    for number, (node, name) in enumerate(zip(nodes, names, strict=True)):
        own: dict[str, Scalar] = {"partition-id": number, "num-partitions": len(nodes), "role": node.role}
        own |= {} if data_dir is None else {"data-dir": str(data_dir.resolve())}
        program = programs.supernode(
            keys, address=address, name=name, port=free_port(HOST), node_config=own, FLWR_HOME=str(home)
        )
        start(name, program)
    start("run", programs.run(app, flower_home=home, run_config=run_config), show=True)
    _await_end(running, ["run"], say)


def _await_superlink(running: Processes, url: str, keys: Keys) -> None:
    context = ssl.create_default_context(cafile=str(keys.ca))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and not running.ended():
        try:
            if httpx.get(url, verify=context, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(POLL_SECONDS)
    tail = running.tail("superlink")
    raise FederationError(f"the SuperLink does not answer: {running.log('superlink')} ends{tail}")


def _await_end(running: Processes, names: list[str], say: Callable[[str], None]) -> None:
    reported: set[str] = set()
    while True:
        ended = running.ended()
        for name, status in ended.items():
            if name == "superlink" or (name in names and status != 0):
                tail = running.tail(name)
                raise FederationError(f"{name} ended with status {status}: {running.log(name)} ends{tail}")
            if status != 0 and name not in reported:
                say(f"node {name} ended with status {status}: see {running.log(name)}")
                reported.add(name)
        if ended.keys() >= set(names):
            return
        time.sleep(POLL_SECONDS)
