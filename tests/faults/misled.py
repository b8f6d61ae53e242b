"""The real ServerApp, which takes the client of the domain in $MISLED for a source, whatever that client says."""

import os
from collections.abc import Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedhess import protocol, roster
from fedhess.protocol import Identity
from fedhess.server import app

__all__ = ["app"]

identify = roster._identify


def misled(grid: Grid, node_ids: Sequence[int], timeout: float) -> list[tuple[int, Identity | str]]:
    """Ask every node who it is, and hear of one what it did not say."""
    return [(node, _turned(said)) for node, said in identify(grid, node_ids, timeout)]


def _turned(said: Identity | str) -> Identity | str:
    if isinstance(said, str) or said.domain != os.environ.get("MISLED"):
        return said
    return replace(said, role=protocol.SOURCE, train_examples=said.evaluate_examples)


roster._identify = misled
