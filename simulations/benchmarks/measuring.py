"""What the measurements share: a row of the table, contestants in turn, a federation in process, and a real job."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedhess.domains import Benchmark
from fedhess.domains.benchmark import Scenario
from fedhess.domains.domain import TensorDomain
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.choice import IN_PROCESS, Engine
from fedhess.federation.server.app import Server
from fedhess.federation.server.local_training import RoundOutcome
from fedhess.federation.server.run_directory import Row as EvaluationRow
from fedhess.settings.run_config import RunConfig

K = TypeVar("K")
T = TypeVar("T")
Row = dict[str, Any]
DOMAINS = ("one", "two", "three", "target")


def row(
    what: str,
    ours: float,
    other: float | None = None,
    *,
    ratio: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    count: int | None = None,
) -> Row:
    """Make a row of the table: our figure, what it is compared with, and a bar for their ratio (default: ours / other).

    Without a ratio the bar applies to our figure itself; without a bar the row is for information. If ``count`` is
    given, our figure is the median of so many measurements.
    """
    if other is not None and ratio is None:
        ratio = ours / other
    measured, unit = (ours, "") if ratio is None else (ratio, "x")
    target, reached = "for information", None
    if at_most is not None:
        target, reached = f"at most {at_most:g}{unit}", measured <= at_most
    if at_least is not None:
        target, reached = f"at least {at_least:g}{unit}", measured >= at_least
    found = {"what": what, "ours": ours, "other": other, "ratio": ratio, "target": target, "pass": reached}
    return found if count is None else found | {"count": count}


def in_turn(contestants: Mapping[K, Callable[[], T]], repeats: int) -> dict[K, list[T]]:
    """Call all contestants in turn, so that a busy machine slows them alike; return the results of each."""
    results: dict[K, list[T]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            results[name].append(call())
    return results


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def run_command(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run ``python -m MODULE ARGUMENTS`` to its end and return what it printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def run_job(out: Path, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``fedhess.simulate`` in a process of its own and return its summary by strategy."""
    run_command("fedhess.simulate", *arguments, "--out", out, "--quiet", environment=environment)
    strategies: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))["strategies"]
    return strategies


# -- A federation in process -------------------------------------------------------------------------------------------


@dataclass
class Rounds:
    """Time and bytes of the rounds of a federation."""

    seconds: list[float] = field(default_factory=list)  # of each round's exchanges, training and averaging
    marks: list[float] = field(default_factory=list)  # when each evaluation ended, including the one before training
    bytes: int = 0  # up and down

    def add_evaluation(self, server_round: int, rows: list[EvaluationRow]) -> None:
        """Count an evaluated round."""
        del server_round
        self.marks.append(time.perf_counter())
        self.bytes += sum(row["bytes_up"] + row["bytes_down"] for row in rows)

    def evaluated_seconds(self, *, warm_up: int) -> list[float]:
        """Return the seconds from one evaluation to the next, without the first ``warm_up``."""
        return [after - before for before, after in pairwise(self.marks[warm_up:])]


class _TimedServer(Server):
    rounds: Rounds

    def _complete(self, server_round: int, outcome: RoundOutcome) -> None:
        if server_round > 0:
            self.rounds.seconds.append(outcome.seconds)
        super()._complete(server_round, outcome)


def run_federation(
    config: RunConfig,
    *,
    prepare: Callable[[Server], object] | None = None,
    app: ClientApp = client_app,
    engine: Engine = IN_PROCESS,
) -> Rounds:
    """Run a federation and time its rounds; ``prepare`` is called with this process's server before it runs."""
    rounds = Rounds()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        server = _TimedServer(grid, config, on_round=rounds.add_evaluation)
        server.rounds = rounds
        if prepare is not None:
            prepare(server)
        server.run()

    nodes = config.source_clients + len(config.targets)
    engine.run(
        server_app,
        app,
        run_config=config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": nodes} for index in range(nodes)],
    )
    return rounds


def random_benchmark(
    name: str, draw: Callable[[int, torch.Generator], Tensor], *, images: int, input_shape: tuple[int, ...], **more: Any
) -> Benchmark:
    """Make a benchmark of four classes: three sources of ``images`` drawn inputs each, and a target of 32."""

    def load(domain: str) -> TensorDomain:
        generator = torch.Generator().manual_seed(DOMAINS.index(domain))
        count = 32 if domain == "target" else images
        return TensorDomain(domain, draw(count, generator), labels=torch.arange(count) % 4)

    return Benchmark(
        name=name,
        domains=DOMAINS,
        classes=("a", "b", "c", "d"),
        input_shape=input_shape,
        outputs=4,
        scenarios=(Scenario(DOMAINS[:3], DOMAINS[3:], "target"),),
        loader=load,
        **more,
    )
