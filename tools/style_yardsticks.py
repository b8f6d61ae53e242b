"""Measure what EmojiStyles or FontStyles leaves to gain: ``python tools/style_yardsticks.py BENCHMARK MODEL``.

For each target three accuracies on the code points or families that are kept for targets, in per cent: trained by ERM
on the other styles; with the target's own style as a source too, which shows others of them; and on that one alone.
MODEL is that of ``fedhess.simulate``, trained in a federation with its default settings, of which ``key=value`` changes
some, and read after the last round; or ``probe``, a linear layer on frozen Lite0 features, fitted to all at once.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhess.domains import open_benchmark
from fedhess.domains.benchmark import SOURCE, TARGET
from fedhess.federation.client.app import app as client_app
from fedhess.federation.client.evaluation import evaluate_model
from fedhess.federation.engines.inprocess import run_in_process
from fedhess.federation.server.app import Server
from fedhess.models.building import build_model
from fedhess.models.headed import HeadedModel
from fedhess.models.prepared import local_domain
from fedhess.settings.assignments import parse_scalar
from fedhess.settings.defaults import default_settings
from fedhess.settings.run_config import RunConfig
from fedhess.simulations.benchmarks.jobs import fit_probe


def trained(config: RunConfig) -> HeadedModel:
    """Run the federation, and return the model of its last round."""
    server_app, found = ServerApp(), build_model(config)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        found.load_state_dict(Server(grid, RunConfig.checked(RunConfig.given_in(context.run_config))).run().tensors)

    nodes = [{"partition-id": number, "num-partitions": len(config.sources)} for number in range(len(config.sources))]
    run_in_process(server_app, client_app, run_config=config.to_run_config(), node_configs=nodes)
    return found


def accuracies(config: RunConfig, targets: Sequence[str], *, probe: bool) -> list[float]:
    """Train on the sources; return the accuracy, in per cent, on the examples that each target keeps."""
    if probe:
        parts = [local_domain(config, domain=domain, role=SOURCE) for domain in config.sources]
        batches = [part.batch(part.train_indices) for part in parts]
        inputs, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        model = fit_probe(inputs, labels, classes=int(labels.max()) + 1)
    else:
        model = trained(config)
    return [
        100 * evaluate_model(model, local_domain(config, domain=target, role=TARGET)).accuracy for target in targets
    ]


def main() -> None:
    """Measure, and print a row for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=["EmojiStyles", "FontStyles"])
    parser.add_argument("model")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--only", default="", metavar="TARGETS")
    given = parser.parse_intermixed_args()
    name, domains = given.benchmark, open_benchmark(given.benchmark, held=()).domains
    model, targets = "lite0-features" if given.model == "probe" else given.model, given.only.split(",")
    targets = domains if targets == [""] else targets
    own = {key: parse_scalar(text) for key, _, text in (each.partition("=") for each in given.settings)}
    settings = default_settings(model, benchmark=name) | own
    config = RunConfig.checked(
        settings
        | {"domains": name, "model": model, "strategy": "erm", "sources": domains, "targets": ()}
        | {"evaluate_every": settings["rounds"], "dtype": "float64" if given.model == "probe" else "float32"}
    )
    measure = partial(accuracies, probe=given.model == "probe")
    print("| target | other styles | all styles | its own alone | minutes |\n|---|---|---|---|---|", flush=True)
    started = time.monotonic()
    of_all = measure(config, targets)
    for target, with_own in zip(targets, of_all, strict=True):
        others = tuple(domain for domain in domains if domain != target)
        of_others, alone = (
            measure(config.model_copy(update={"sources": sources}), [target])[0] for sources in (others, (target,))
        )
        minutes = (time.monotonic() - started) / 60
        print(f"| {target} | {of_others:.1f} | {with_own:.1f} | {alone:.1f} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
