"""Many clients: memory that does not grow with them, and time in proportion to them.

Memory: one round of HGP (two exchanges, training, evaluation before and after) on a ResNet-18 without pretrained
weights and 3,000 small images, shared among 10 clients or 1,000; each in a process of its own, by its peak. Time: the
second round of a small network, with the same number of images a client. Up to 8 clients a process keeps the forward
pass that answered the exchanges for the step, so 100 clients are the measure of 1,000, and 10 are shown beside them.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhess.domains import BENCHMARKS, Benchmark
from fedhess.domains.benchmark import Scenario
from fedhess.domains.domain import TensorDomain
from fedhess.domains.opening import Opening
from fedhess.federation.client.app import app as client_app
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server.app import Server
from fedhess.settings.run_config import RunConfig

FEW, MANY = 10, 1000
COUNTS = (10, 100, 1000)
DOMAINS = ("one", "two", "three", "target")
SIDE = 32
MEMORY_BAR, TIME_BAR = 1.3, 1.3
IMAGES = {"resnet18": 1000, "mlp": 0}  # of a source domain; 0: two for each client of the run
ROUNDS = {"resnet18": 1, "mlp": 2}


def open_crowd(opening: Opening) -> Benchmark:
    """Open a benchmark of three sources and a target with random images; option: images of a source."""
    options = opening.read_options(images=1000)

    def load(domain: str) -> TensorDomain:
        generator = torch.Generator().manual_seed(DOMAINS.index(domain))
        count = 32 if domain == "target" else int(options["images"])
        images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return TensorDomain(domain, images, labels=torch.arange(count) % 4)

    return Benchmark(
        name="Crowd",
        domains=DOMAINS,
        classes=("a", "b", "c", "d"),
        input_shape=(3, SIDE, SIDE),
        outputs=4,
        default_model="resnet18",
        scenarios=(Scenario(DOMAINS[:3], DOMAINS[3:], "target"),),
        loader=load,
        options=options,
    )


def clients_rows(*, repeats: int) -> list[dict[str, Any]]:
    """Measure both.

    Args:
        repeats: Of the timings, at most 3: a round of 1,000 clients takes seconds. Memory is measured once, since a
            round of 1,000 ResNets takes minutes.
    """
    few, many = (_measure("resnet18", clients)["peak_megabytes"] for clients in (FEW, MANY))
    rows = [
        {
            "what": f"peak memory of a round of HGP with {MANY:,} clients of ResNet-18, beside {FEW} (MB)",
            "ours": many,
            "other": few,
            "ratio": many / few,
            "target": f"at most {MEMORY_BAR:g} times that of {FEW}",
            "pass": many / few <= MEMORY_BAR,
        }
    ]
    seconds: dict[int, list[float]] = {clients: [] for clients in COUNTS}
    for _ in range(min(repeats, 3)):
        for clients, found in seconds.items():
            found.append(_measure("mlp", clients)["seconds"] / clients)
    each = {clients: 1000 * statistics.median(found) for clients, found in seconds.items()}
    base, most = COUNTS[1], COUNTS[-1]
    for clients, ours in each.items():
        ratio = ours / each[base]
        rows.append(
            {
                "what": f"a round of HGP in process with {clients:,} clients, beside {base}: each client (ms)",
                "ours": ours,
                "other": each[base],
                "ratio": ratio,
                "target": f"at most {TIME_BAR:g} times: linear" if clients == most else "",
                "pass": ratio <= TIME_BAR if clients == most else None,
            }
        )
    return rows


def run_round(model: str, clients: int) -> dict[str, float]:
    """Run the model's rounds in this process.

    Args:
        model: Name of the model.
        clients: Number of source clients.

    Returns:
        Seconds of the last round, evaluations left out, and the process's peak of memory so far in megabytes.
    """
    BENCHMARKS["Crowd"] = f"{__name__}:open_crowd"
    images = IMAGES[model] or max(40, 2 * clients)
    config = RunConfig.checked(
        {
            "domains": "Crowd",
            "domains_options": {"images": images},
            "sources": DOMAINS[:3],
            "targets": DOMAINS[3:],
            "partition": "lambda",
            "clients": clients,
            "model": model,
            "pretrained": False,
            "strategy": "hgp",
            "rounds": ROUNDS[model],
            "local_steps": 1,
            "batch_size": 2,
            "lr": 1e-3,
        }
    )
    seconds: list[float] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server = Server(grid, RunConfig.from_run_config(context.run_config))
        train = server._train

        def timed(server_round: int) -> Any:
            started = time.perf_counter()
            outcome = train(server_round)
            seconds.append(time.perf_counter() - started)
            return outcome

        server._train = timed  # type: ignore[method-assign]
        server.run()

    nodes = clients + 1
    run_in_process(
        server_app,
        client_app,
        run_config=config.to_run_config(),
        node_configs=[{"partition-id": index, "num-partitions": nodes} for index in range(nodes)],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts kilobytes
    return {"seconds": seconds[-1], "peak_megabytes": peak}


def _measure(model: str, clients: int) -> dict[str, float]:
    """Run a round in a process of its own."""
    command = [sys.executable, "-m", __name__, model, str(clients)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run_round(sys.argv[1], int(sys.argv[2]))) + "\n")
