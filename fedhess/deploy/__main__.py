"""The commands of ``python -m fedhess.deploy``."""

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from filelock import FileLock

from fedhess.alignment.loading import is_installed
from fedhess.base.errors import FederationError, UsageError
from fedhess.cli.command import Command, run_command
from fedhess.deploy import programs
from fedhess.deploy.gateway import gateway
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.local import run_locally
from fedhess.deploy.nodes import NODES_FILE, NODES_VARIABLE, read_names, register_nodes
from fedhess.deploy.packing import pack_app
from fedhess.deploy.processes import processes, require_free
from fedhess.deploy.settings import check_node_config, plan_nodes, plan_run, read_settings
from fedhess.deploy.status import read_status
from fedhess.deploy.submitted import follow_run, start_run
from fedhess.deploy.watch import hand_over
from fedhess.jobs.directory import require_unused
from fedhess.jobs.plan import check_settings
from fedhess.settings.assignments import Scalar

KeysFolder = Annotated[Path, typer.Option("--keys", help="Folder of certificates and keys.")]
Address = Annotated[str, typer.Option("--superlink", help="HOST:PORT of the SuperLink.")]
State = Annotated[
    Path, typer.Option(help="Folder of the SuperLink: runs, and what survives a restart (registered nodes, past runs).")
]
Domains = Annotated[str, typer.Option(help="Benchmark; `python -m fedhess.simulate --list` names them.")]
Target = Annotated[str, typer.Option(help="Domain never seen in training. [default: the first]")]
Strategy = Annotated[str | None, typer.Option(help="Strategy, installed on server and nodes. [default: hgp]")]
Rounds = Annotated[int | None, typer.Option(help="Rounds of training. [default: by model]")]
RunConfigs = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config", help="Further settings, as `flwr run` takes them: 'quorum=2 references=\"previous\"'."
    ),
]

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


@cli.callback()
def deploy() -> None:
    """Run fedhess on real machines through Flower's programs; each command prints the plain one that it runs."""


@cli.command(cls=Command)
def keys(
    host: Annotated[
        list[str] | None, typer.Option(help="Name or IP address of the SuperLink; give each that nodes use.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Name of a node; give all.")] = None,
    folder: KeysFolder = Path("keys"),
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity of the server's certificate.")] = 365,
) -> None:
    """Make a certificate authority, the server's certificate and key pairs of nodes; what is there stays."""
    made = make_keys(Keys(folder), hosts=host or [], nodes=node or [], days=days)
    typer.echo("\n".join(f"made {file}" for file in made) or f"nothing to make: all of it is in {folder}")


@cli.command(cls=Command)
def superlink(
    folder: KeysFolder = Path("keys"),
    host: Annotated[str, typer.Option(help="IP address that nodes reach; 0.0.0.0 is every one.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that nodes reach.")] = 8000,
    control_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on loopback, for `register` and `run`.")
    ] = 8001,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port on loopback for Prometheus: /metrics, a minute old at most."),
    ] = None,
    state: State = Path("superlink"),
    further: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Further options of flower-superlink.")
    ] = None,
) -> None:
    """Start the SuperLink on loopback with TLS and authenticated nodes, and before it nginx, which lets only nodes in.

    Ends when either of them does, and ends the other.
    """
    os.umask(0o077)
    require_free(host, port, option="--host or --port")
    require_free("127.0.0.1", control_port, option="--control-port")
    if metrics_port is not None:
        if metrics_port in (port, control_port):
            raise UsageError(
                f"--metrics-port {metrics_port}: --port or --control-port is the same; choose another port"
            )
        require_free("127.0.0.1", metrics_port, option="--metrics-port")
    keys = Keys(folder.resolve())
    front = gateway(keys, host=host, port=port, control_port=control_port, folder=state / "nginx")
    database, nodes = state.resolve() / "superlink.db", state.resolve() / NODES_FILE
    if database.exists():
        database.chmod(0o600)
    link = programs.superlink(keys, host="127.0.0.1", port=control_port, database=database, further=further or ())
    both = [("superlink", replace(link, variables={NODES_VARIABLE: str(nodes)})), ("nginx", front)]
    for _, program in both:
        typer.echo(f"$ {program}")
    metrics = None
    if metrics_port is not None:
        own = (state / "metrics").resolve()  # the folder of keys may be read-only, and Flower's command line writes
        own.mkdir(exist_ok=True)
        shutil.copyfile(keys.ca, own / keys.ca.name)
        metrics = programs.metrics(own, port=control_port, state=state.resolve()), metrics_port
    hand_over(both, folder=state, database=database, metrics=metrics)


@cli.command(cls=Command)
def register(
    address: Address,
    folder: KeysFolder = Path("keys"),
    client: Annotated[
        list[str] | None,
        typer.Option(help="KEY=CLIENT where a key is not named as its client, as hospital-2=photo or north=photo[1]."),
    ] = None,
    state: State = Path("superlink"),
) -> None:
    """Register the public key of every node in the folder, on the SuperLink's machine, before the nodes start.

    Writes STATE/nodes.json: from then on a node answers for its own client alone.
    """
    clients = read_names(client or [], Keys(folder))
    if not state.is_dir():
        raise UsageError(
            f"--state: there is no folder {state}; register on the machine of `superlink`, with its --state"
        )
    os.umask(0o077)
    home = _connect(address, folder)
    register_nodes(clients, Keys(folder), file=state / NODES_FILE, flower_home=home, say=typer.echo)


@cli.command(cls=Command)
def supernode(
    address: Address,
    domain: Annotated[str, typer.Option(help="Domain whose data this machine holds.")],
    folder: KeysFolder = Path("keys"),
    role: Annotated[
        Literal["source", "target"], typer.Option(help="A target evaluates and does nothing else.")
    ] = "source",
    name: Annotated[str, typer.Option(help="Name of the node's key. [default: the domain]")] = "",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data; only this domain's is needed.")] = None,
    device: Annotated[str, typer.Option(help="Device of this node, whatever the run says.")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback for the node's own processes.")] = 9095,
    node_config: Annotated[str, typer.Option(help="Further settings of the node, as Flower takes them.")] = "",
    patience: Annotated[float, typer.Option(help="Seconds to try again if the SuperLink refuses the node.")] = 90.0,
    further: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Further options of flower-supernode.")
    ] = None,
) -> None:
    """Start the SuperNode of one domain.

    A node that was killed is refused until the SuperLink has missed it, up to a minute: it tries again.
    """
    own: dict[str, Scalar] = {"role": role, "domain": domain}
    own |= {} if data_dir is None else {"data-dir": str(data_dir.resolve())}
    own |= {"device": device} if device else {}
    check_node_config(node_config, own)
    require_free("127.0.0.1", port)
    os.umask(0o077)
    program = programs.supernode(
        Keys(folder),
        address=address,
        name=name or domain,
        port=port,
        node_config=own,
        more_config=node_config,
        further=further or (),
    )
    typer.echo(f"$ {program}")
    hand_over([(name or domain, program)], patience=patience)


@cli.command(cls=Command)
def status(
    address: Address,
    folder: KeysFolder = Path("keys"),
    state: State = Path("superlink"),
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Metrics in Prometheus's text format, for a collector of text files.")
    ] = False,
) -> None:
    """Show the nodes and when they were last seen, the runs, and their last evaluated rounds."""
    found = read_status(_connect(address, folder), state)
    typer.echo(found.metrics() if prometheus else found.tables(), nl=not prometheus)


@cli.command(cls=Command)
def run(
    address: Address,
    domains: Domains = "IconPACS",
    target: Target = "",
    strategy: Strategy = None,
    rounds: Rounds = None,
    run_dir: Annotated[Path | None, typer.Option(help="Job directory, on the SuperLink's machine.")] = None,
    resume_from: Annotated[
        int | None,
        typer.Option(help="Continue the job in --run-dir from this earlier round; what came after is dropped."),
    ] = None,
    run_config: RunConfigs = None,
    folder: KeysFolder = Path("keys"),
) -> None:
    """Send the app to the SuperLink, start a run, show its log until it ends, and end with 1 if it failed."""
    config = plan_run(
        domains,
        target=target,
        strategy=strategy,
        rounds=rounds,
        run_dir=run_dir,
        resume_from=resume_from,
        given=run_config or [],
    )
    settings = read_settings(config)
    if not is_installed(settings.strategy):
        typer.echo(f"fedhess: strategy {settings.strategy!r} is not installed here; server and nodes need it", err=True)
    home = _connect(address, folder)
    with FileLock(home / "app.lock"):  # another run may be starting from this folder
        run_id = start_run(pack_app(home / "fedhess"), flower_home=home, run_config=config, say=typer.echo)
    follow_run(run_id, flower_home=home, say=typer.echo)


@cli.command(cls=Command)
def local(
    domains: Domains = "IconPACS",
    target: Target = "",
    strategy: Strategy = None,
    rounds: Rounds = None,
    run_config: RunConfigs = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data of all domains.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results, logs, keys. [default: runs/local_TIME]")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the SuperLink; 0 takes a free one.")] = 0,
) -> None:
    """Run a whole federation on this machine: a SuperLink and a SuperNode a client, with TLS and authentication."""
    folder = (out or Path("runs") / f"local_{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    require_unused(folder, grows=False)
    if any("run-dir=" in text for text in run_config or []):
        raise UsageError("--run-config: a local run writes to its own folder, so it takes no run-dir; use --out FOLDER")
    results = folder / "results"
    config = plan_run(domains, target=target, strategy=strategy, rounds=rounds, run_dir=results, given=run_config or [])
    settings = read_settings(config, data_dir=data_dir)
    check_settings([settings])
    nodes = plan_nodes(settings)
    with processes(folder / "logs") as running:
        run_locally(folder, config, nodes, port=port, data_dir=data_dir, running=running, say=typer.echo)
        if not list(results.glob("summary*.json")):
            log = running.tail("superlink")
            raise FederationError(f"the run failed; {running.log('superlink')} ends{log}")
    typer.echo(f"results: {results}; logs: {folder / 'logs'}")


def _connect(address: str, folder: Path) -> Path:
    """Write Flower's configuration for a SuperLink into the folder of keys; return the Flower home."""
    keys, home = Keys(folder), folder / "flower"
    keys.require(keys.ca)
    programs.write_connection(home, address=address, ca=keys.ca)
    return home


def main() -> None:
    """Run the command; every mistake of the user ends with one message and status 2."""
    sys.exit(run_command(cli))


if __name__ == "__main__":
    main()
