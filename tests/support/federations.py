"""Run the real server and client apps on the toy benchmark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor
from toy import toy_config

from fedhess.domains import BENCHMARKS
from fedhess.federation.client import memory
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server import discovery
from fedhess.federation.server.app import Server
from fedhess.federation.server.run_directory import Row, RunDirectory
from fedhess.settings.run_config import RunConfig


@dataclass
class Finished:
    """What a test wants to know of a run."""

    tensors: dict[str, Tensor]
    rows: list[Row] = field(default_factory=list)
    server: Server | None = None


@pytest.fixture(autouse=True)
def toy_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "Toy", "toy:open_toy")
    monkeypatch.setattr(discovery, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(discovery, "AGAIN_SECONDS", 0.1)
    memory.MEMORY.clear()


@pytest.fixture
def toy_run() -> Callable[..., Finished]:
    def run(
        *,
        node_ids: Sequence[int] | None = None,
        app: ClientApp = client_app,
        directory: Path | None = None,
        wrap: Callable[[Grid], Grid] = lambda grid: grid,
        **changes: Any,
    ) -> Finished:
        config = toy_config(**changes)
        finished = Finished({})
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            where = RunDirectory(directory) if directory is not None else None
            server = Server(
                wrap(grid), RunConfig.checked(RunConfig.given_in(context.run_config)), directory=where,
                on_round=lambda _, rows: finished.rows.extend(rows),
            )  # fmt: skip
            finished.server = server
            model = server.run()
            finished.tensors = {name: value.clone() for name, value in model.tensors.items()}

        count = config.source_clients + len(config.targets)
        run_in_process(
            server_app,
            app,
            run_config=config.to_run_config(),
            node_configs=[{"partition-id": index, "num-partitions": count} for index in range(count)],
            node_ids=node_ids,
        )
        return finished

    return run
