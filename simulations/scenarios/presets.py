"""Turn a published protocol into the jobs of ``diversity_shift --preset``, and say how they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import find_method
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.settings.assignments import Scalar
from fedhess.settings.ranges import draw_settings
from fedhess.simulations.scenarios.comparison import Comparison
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.published_protocols import PROTOCOLS, Protocol

QUICK: Mapping[str, Any] = {
    "model": "resnet18", "pretrained": False,
    "rounds": 2, "batch_size": 32, "evaluate_every": 1, "checkpoint_every": 2,
}  # fmt: skip
QUICK_CLIENTS, QUICK_DRAWS = 4, 2


def find_protocol(name: str) -> Protocol:
    """Find a preset."""
    if name not in PROTOCOLS:
        raise UsageError(f"--preset: unknown protocol {name!r}; {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def comparison_of(protocol: Protocol) -> Comparison:
    """Return how a protocol's results are shown: beside its own published ones, with every difference named."""
    return Comparison(
        name="diversity_shift",
        title=f"Leave one domain out, protocol {protocol.name}",
        published=protocol.published,
        labels={"sources": "sources (held out)"},
        variety=f"--preset {protocol.name}",
        notes=protocol.notes(),
    )


def configurations(
    protocol: Protocol,
    *,
    domains: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    target: str = "all",
    selection: str = "source",
    data_dir: Path | None = None,
    quick: bool = False,
) -> list[Configuration]:
    """List a protocol's jobs: every benchmark with every strategy and seed.

    With ``quick``, a small network without pretrained weights, two rounds of small batches, few clients and settings.
    """
    for strategy in (each for each in strategies if protocol.draws and find_method(each).is_flower):
        raise UsageError(
            f"--strategy: preset {protocol.name} draws the server's learning rate, got {strategy!r}, a plain Flower "
            "strategy with a server of its own; leave it out, or choose a preset that draws nothing"
        )
    options: dict[str, Scalar] = {} if data_dir is None else {"data_dir": str(data_dir.resolve())}
    jobs = [
        Configuration(
            benchmark,
            strategy,
            seed,
            {**options, **protocol.options.get(benchmark, {})},
            strategy_args=protocol.strategy_args.get(strategy, {}).get(benchmark, {}),
            overrides={**protocol.settings_of(benchmark, strategy), **each},
            target=target,
            variants=_drawn(protocol, strategy, benchmark, seed),
            selection=selection,
            oracle=protocol.oracle,
            require_real=True,
        )
        for seed in seeds
        for benchmark in domains
        for strategy in strategies
        for each in (protocol.each[:1] if quick else protocol.each)
    ]
    return [_quickened(job) for job in jobs] if quick else jobs


def _drawn(protocol: Protocol, strategy: str, benchmark: str, trial: int) -> tuple[Mapping[str, Scalar], ...]:
    """Draw a trial's settings: the first has the protocol's own values."""
    if not protocol.draws:
        return ()
    drawn = [
        draw_settings(strategy, benchmark, number=number, trial=trial, ranges=protocol.ranges)
        for number in range(1, protocol.draws)
    ]
    settings = protocol.settings_of(benchmark)
    return ({"server_lr": settings["server_lr"], "batch_size": settings["batch_size"]}, *drawn)


def _quickened(job: Configuration) -> Configuration:
    changed = {**job.overrides, **QUICK}
    changed |= {"local_epochs": 1} if changed.get("local_epochs") else {}
    changed |= {"clients": QUICK_CLIENTS} if "clients" in changed else {}
    few = tuple({**variant, "batch_size": QUICK["batch_size"]} for variant in job.variants[:QUICK_DRAWS])
    return replace(job, overrides=changed, variants=few)
