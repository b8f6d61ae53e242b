"""Map clients to registered nodes: ``nodes.json`` in the SuperLink's state folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from fedhess.base.errors import FederationError, UsageError
from fedhess.base.files import replace_file
from fedhess.deploy import programs
from fedhess.deploy.keys import Keys
from fedhess.deploy.programs import answer

NODES_FILE = "nodes.json"
NODES_VARIABLE = "FEDHESS_NODES"  # holds the path of that file for the ServerApp, which the SuperLink starts


def read_nodes(file: Path) -> dict[str, int]:
    """Read which node may answer for which client; empty if no node has been registered yet."""
    if not file.is_file():
        return {}
    try:
        return {str(client): int(node) for client, node in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{file} cannot be read ({error}); expected clients with the ids of their nodes, as {{"photo": 123}}'
        ) from error


def read_names(given: list[str], keys: Keys) -> dict[str, str]:
    """Return the client of each key: the one given by ``KEY=CLIENT``, otherwise the client with the key's name.

    Raises:
        UsageError: There is no key, an argument is malformed or names an unknown key, or two keys have one client.
    """
    names = [file.stem for file in keys.public_keys()]
    if not names:
        raise UsageError(
            f"--keys: there is no node's key in {keys.folder / 'nodes'}; make them with `keys --node NAME`"
        )
    clients = dict(zip(names, names, strict=True))
    for text in given:
        key, mark, client = text.partition("=")
        if not mark or not client or key not in clients:
            raise UsageError(f"--client: expected KEY=CLIENT with a key of {', '.join(names)}, got {text!r}")
        clients[key] = client
    if len(set(clients.values())) < len(clients):
        raise UsageError(f"--client: expected another client for each key, got {clients}")
    return clients


def register_nodes(
    clients: Mapping[str, str], keys: Keys, *, file: Path, flower_home: Path, say: Callable[[str], object]
) -> None:
    """Register the keys at the SuperLink, and record the node of each client.

    Raises:
        UsageError: The file cannot be read or written.
        FederationError: Some keys were not registered; the others were.
    """
    nodes, failed = read_nodes(file), []
    for key, client in clients.items():
        program = programs.register(keys.public(key), flower_home=flower_home)
        say(f"$ {program}")
        try:
            node = int(answer(program)["node-id"])
        except FederationError as error:
            failed.append(f"{key}: {error}")
            continue
        if client in nodes:
            say(f"client {client} was node {nodes[client]}")
        nodes[client] = node
        say(f"client {client} is node {node}")
        try:
            replace_file(file, (json.dumps(nodes, indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(
                f"--state: cannot write {file}: {error.strerror}; choose the SuperLink's folder"
            ) from error
    if failed:
        raise FederationError("not registered (a node that is already is refused): " + "\n".join(failed))
