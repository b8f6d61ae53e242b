"""Many clients: memory must not grow with their number, and time must be in proportion to it.

Memory: the peak of one round of HGP (two exchanges, training, evaluation before and after) on a ResNet-18 without
pretrained weights and 3,000 small images, shared among 10 clients or 1,000, each in a process of its own. Time: the
second round of a small network, with the same number of images a client (twice as many for 10 clients). A process keeps
the forward passes of the exchanges for the step as far as they fit, so 1,000 clients are compared with 100.
"""

import json
import resource
import statistics
import sys
from functools import partial

import torch

from fedhess.domains import BENCHMARKS, Benchmark
from fedhess.domains.opening import Opening
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.measuring import (
    DOMAINS,
    Row,
    in_turn,
    random_benchmark,
    row,
    run_command,
    run_federation,
)

FEW, MANY = 10, 1000
COUNTS = (10, 100, 1000)
SHAPE = (3, 32, 32)
BAR = 1.3  # of memory and of time
IMAGES = {"resnet18": 1000, "mlp": 0}  # of a source domain; 0: two for each client of the run, at least 40
ROUNDS = {"resnet18": 1, "mlp": 2}


def open_crowd(opening: Opening) -> Benchmark:
    """Open a benchmark of three sources and a target with random images; option: images of a source."""
    options = opening.read_options(images=1000)
    return random_benchmark(
        "Crowd",
        lambda count, generator: torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator),
        images=int(options["images"]),
        input_shape=SHAPE,
        default_model="resnet18",
        options=options,
    )


def clients_rows(*, repeats: int) -> list[Row]:
    """Measure memory once, since a round of 1,000 ResNets takes minutes, and time at most three times."""
    few, many = (_measure("resnet18", clients)["peak_megabytes"] for clients in (FEW, MANY))
    what = f"peak memory of a round of HGP with {MANY:,} clients of ResNet-18, beside {FEW} (MB)"
    rows = [row(what, many, few, at_most=BAR)]
    found = in_turn({clients: partial(_measure, "mlp", clients) for clients in COUNTS}, min(repeats, 3))
    each = {n: 1000 * statistics.median(one["seconds"] / n for one in several) for n, several in found.items()}
    base, most = COUNTS[1:]
    for clients, ours in each.items():
        what = f"a round of HGP in process with {clients:,} clients, beside {base}: each client (ms)"
        bar = BAR if clients == most else None
        rows.append(row(what, ours, each[base], at_most=bar, count=len(found[clients])))
    return rows


def run_rounds(model: str, clients: int) -> dict[str, float]:
    """Run the model's rounds in this process; return the seconds of the last one and the peak memory in megabytes."""
    BENCHMARKS["Crowd"] = f"{__name__}:open_crowd"
    config = RunConfig.checked(
        {
            "domains": "Crowd",
            "domains_options": {"images": IMAGES[model] or max(40, 2 * clients)},
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
    seconds = run_federation(config).seconds[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts kilobytes
    return {"seconds": seconds, "peak_megabytes": peak}


def _measure(model: str, clients: int) -> dict[str, float]:
    """Run the rounds in a process of their own."""
    measured: dict[str, float] = json.loads(run_command(__name__, model, clients))
    return measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run_rounds(sys.argv[1], int(sys.argv[2]))) + "\n")
