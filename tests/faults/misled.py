"""The real ServerApp, which takes the client of the domain in $MISLED for a source, whatever that client says.

With $CURIOUS it has every client evaluate each model twice.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedhess.deploy.app import app
from fedhess.domains.benchmark import SOURCE
from fedhess.federation.protocol import Identity
from fedhess.federation.server import app as server
from fedhess.federation.server import discovery
from fedhess.federation.server.evaluation import evaluate_clients

__all__ = ["app"]


class Misheard:
    """Reads who a client is as the server does, and hears of one what it did not say."""

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Identity:
        """Read an identity; that of the domain in $MISLED becomes a source's."""
        said = Identity.from_record(record)
        if said.domain != os.environ.get("MISLED"):
            return said
        return replace(said, role=SOURCE, train_examples=said.evaluate_examples)


discovery.Identity = Misheard  # type: ignore[misc, assignment]


def evaluate_twice(*args: Any, **given: Any) -> Any:
    """Have the clients evaluate a model, and do it again."""
    measured = evaluate_clients(*args, **given)
    evaluate_clients(*args, **given)
    return measured


if "CURIOUS" in os.environ:
    server.evaluate_clients = evaluate_twice
