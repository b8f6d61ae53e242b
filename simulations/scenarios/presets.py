"""Published protocols on PACS, VLCS, OfficeHome, DomainNet and TerraIncognita, as presets of ``diversity_shift``.

    python -m fedhess.simulations.diversity_shift --preset ga --domains PACS

Facts are taken from released code (each protocol's ``source``). What the code leaves open, and what we do differently,
is named in ``differences``, which every table of results repeats. docs/protocols.md has the commands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhess.alignment.loading import find_method
from fedhess.base.errors import UsageError, did_you_mean
from fedhess.results.published import (
    BAI_PROTOCOL,
    DOMAINBED_SWEEP,
    FEDIIR_PROTOCOL,
    GA_PROTOCOL,
    Table,
)
from fedhess.settings.assignments import Scalar
from fedhess.settings.ranges import draw_settings
from fedhess.simulations.scenarios.comparison import Comparison
from fedhess.simulations.scenarios.measurement import Configuration

BENCHMARKS = ("PACS", "VLCS", "OfficeHome", "DomainNet")
WITH_TERRA = (*BENCHMARKS, "TerraIncognita")
FEDAVG: Mapping[str, Any] = {"server_optimizer": "SGD", "server_lr": 1.0, "augment": "domainbed"}


@dataclass(frozen=True)
class Protocol:
    """How a publication trains, selects and reports."""

    name: str  # as --preset takes it
    title: str  # authors and venue
    source: str  # of its facts
    settings: Mapping[str, Any]  # by their name in RunConfig
    strategies: tuple[str, ...]  # what --strategy all takes
    published: Mapping[str, Table]  # its own results, by benchmark
    differences: tuple[str, ...]  # from the publication, one sentence each
    of_benchmark: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings that differ by benchmark
    of_strategy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings that differ by strategy
    each: tuple[Mapping[str, Any], ...] = ({},)  # settings; every job is run with each of them in turn
    options: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)  # of benchmarks
    seeds: tuple[int, ...] = (0, 1, 2)
    ours: tuple[str, ...] = ()  # benchmarks it was not run on, as far as we know; they have the settings of PACS
    strategy_args: Mapping[str, Mapping[str, Mapping[str, Scalar]]] = field(default_factory=dict)  # then by benchmark
    draws: int = 0  # number of settings to select among, drawn as in DomainBed; 0: a single one
    ranges: str = "released"  # of the draws, a key of ranges.RANGES
    oracle: bool = False  # whether it reports the oracle too
    benchmarks: tuple[str, ...] = BENCHMARKS  # what it is a preset for

    def settings_of(self, benchmark: str, strategy: str = "") -> dict[str, Any]:
        """Return every setting on a benchmark, with those that differ for a strategy."""
        return {**self.settings, **self.of_benchmark.get(benchmark, {}), **self.of_strategy.get(strategy, {})}

    def notes(self) -> tuple[str, ...]:
        """Return title, source and every difference, for the tables."""
        others = ", ".join(self.ours)
        untried = [f"{others}: not run by the authors as far as we know; settings of PACS"] if others else []
        return (f"protocol: {self.title}; {self.source}", *self.differences, *untried)


# One SGD step with learning rate 1 passes the gradient to the server's Adam: this is the centralised algorithm.
_DOMAINBED = Protocol(
    name="domainbed",
    title="DomainBed (Gulrajani and Lopez-Paz, ICLR 2021)",
    source="released code: scripts/train.py, scripts/sweep.py, datasets.py, hparams_registry.py, model_selection.py",
    settings={
        "model": "resnet50", "split": "domainbed", "rounds": 5001, "local_steps": 1, "batch_size": 32,
        "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "server_optimizer": "Adam", "server_lr": 5e-5,
        "evaluate_every": 300, "checkpoint_every": 300, "augment": "domainbed", "batchnorm": "frozen",
    },
    of_benchmark={"DomainNet": {"evaluate_every": 1000, "checkpoint_every": 1000}},
    strategies=("erm", "irm", "coral", "vrex", "fishr", "hgp", "hutchinson"),
    strategy_args={name: {key: {"scale": "absolute"} for key in WITH_TERRA} for name in ("hgp", "hutchinson")},
    published=DOMAINBED_SWEEP,
    draws=20,
    oracle=True,
    benchmarks=WITH_TERRA,
    differences=(
        "one step of a source client a round: equal to DomainBed's centralised steps, not to federated ones",
        "batches come from shuffled passes, DomainBed draws each with replacement; initial weights differ too",
        "no dropout before the classifier, which DomainBed draws from 0, 0.1 and 0.5 but for the first setting",
        "evaluated after 0, 300, 600, ... steps and at the end, DomainBed after 1, 301, 601, ...",
        "trials are seeds 0, 1, 2: they have DomainBed's own drawn settings, number for number, and its own splits "
        "where the files have their released names; a copy from the hub has others, and its splits may differ",
        "HGP and Hutchinson draw from their authors' ranges, under names of ours; Hutchinson's lie far above its "
        "defaults, and preset domainbed-default-ranges has those that stand commented out beside them",
    ),
)  # fmt: skip
_DOMAINBED_DEFAULT_RANGES = replace(
    _DOMAINBED,
    name="domainbed-default-ranges",
    title=f"{_DOMAINBED.title}, Hutchinson's other ranges",
    strategies=("hutchinson",),
    ranges="commented-out",
    differences=(
        *_DOMAINBED.differences[:-1],
        "Hutchinson draws from the ranges around its defaults that stand commented out beside the released ones, under "
        "names of ours",
    ),
)

_GA = Protocol(
    name="ga",
    title="Generalization Adjustment (Zhang et al., CVPR 2023)",
    source="released code: algorithms/fedavg/train_pacs.py, train_pacs_GA.py, utils/trainval_func.py, data/",
    settings={
        **FEDAVG, "model": "resnet18", "rounds": 40, "local_epochs": 5, "batch_size": 16, "lr": 1e-3,
        "lr_schedule": "step", "lr_drop_after": 0.8, "momentum": 0.9, "weight_decay": 5e-4, "weighting": "examples",
        "evaluate_every": 1, "batchnorm": "averaged",
    },
    strategies=("erm", "fedprox", "fediir", "hgp", "hutchinson"),
    published=GA_PROTOCOL,
    ours=("VLCS",),
    options={"DomainNet": {"classes": "ten"}},
    benchmarks=WITH_TERRA,
    differences=(
        "its method is strategy ga, which runs if asked for: --strategy ga",
        "80/20 splits of the sources, class by class; there the lists that come with PACS, 90/10 on OfficeHome, "
        "80/20 by example on TerraIncognita",
        "the clients' optimizers begin anew each round; there they keep their momentum over the rounds",
        "the last, smaller batch of an epoch counts; there it is dropped",
        "40 rounds; the released loop makes one more",
        "colour jitter of 0.3 where it has 0.4",
        "OfficeHome, DomainNet (ten of its classes, as there) and TerraIncognita have the settings of PACS, the one "
        "whose training is released",
        "seeds 0, 1, 2 are ours; the code sets none",
    ),
)  # fmt: skip

_FEDIIR = Protocol(
    name="fediir",
    title="FedIIR (Guo et al., ICML 2023)",
    source="released code: main.py, domainbed/algorithms.py, domainbed/hparams_registry.py",
    settings={
        **FEDAVG, "model": "resnet18", "partition": "lambda", "clients": 10, "heterogeneity": 0.0,
        "clients_per_round": 3, "rounds": 100, "local_epochs": 1, "batch_size": 32, "lr": 2.5e-3,
        "momentum": 0.9, "weight_decay": 0.0, "weighting": "domain", "evaluate_every": 10,
        "batchnorm": "frozen",
    },
    of_benchmark={
        "VLCS": {"lr": 1e-3},
        "OfficeHome": {"lr": 1e-3, "model": "resnet50"},
        "DomainNet": {"lr": 1e-3, "model": "resnet50"},
    },
    strategies=("erm", "fediir", "hgp", "hutchinson"),
    strategy_args={
        "fediir": {
            "PACS": {"gamma": 1e-3, "ema": 0.95},
            "VLCS": {"gamma": 5e-3, "ema": 0.95},
            "OfficeHome": {"gamma": 5e-4, "ema": 0.95},
            "DomainNet": {"gamma": 1e-3, "ema": 0.95},
        }
    },
    published=FEDIIR_PROTOCOL,
    differences=(
        "DomainNet: not run by the authors; learning rate, network and penalty are what their code falls back on",
        "80/20 splits of the sources, class by class; there 10 % of each domain, drawn by example, are held out",
        "a linear head; there a hidden layer of half the features' width comes before it on these benchmarks",
        "domains weigh equally, and their clients by examples; there the sampled clients do",
        "the mean gradient is that of the round's first batches; there that of every batch of the sampled clients",
        "its moving average begins with the first mean; there with zero",
        "evaluated after 0, 10, 20, ... rounds; there after 1, 11, 21, ...",
        "seeds 0, 1, 2 are ours",
    ),
)  # fmt: skip

_BAI = Protocol(
    name="bai",
    title="Benchmarking algorithms for federated domain generalization (Bai et al., ICLR 2024)",
    source="released code, June 2025: sweep/random_seeds/pacs/, main.py, src/client.py, src/server.py, src/splitter.py",
    settings={
        **FEDAVG, "model": "resnet50", "partition": "lambda", "clients": 100, "rounds": 80,
        "local_epochs": 1, "batch_size": 32, "client_optimizer": "Adam", "lr": 3e-5, "momentum": 0.0,
        "weight_decay": 0.0, "weighting": "examples", "evaluate_every": 1, "batchnorm": "frozen",
    },
    of_strategy={"fedprox": {"lr": 1e-5}},
    each=({"heterogeneity": 1.0}, {"heterogeneity": 0.1}, {"heterogeneity": 0.0}),
    seeds=(1002, 1003, 1004),
    strategies=("erm", "irm", "coral", "groupdro", "fedprox", "hgp", "hutchinson"),
    strategy_args={
        strategy: dict.fromkeys(BENCHMARKS, args)
        for strategy, args in {
            "irm": {"weight": 1000.0, "anneal_steps": 100},
            "coral": {"gamma": 1.0},
            "groupdro": {"eta": 0.01},
            "fedprox": {"mu": 1.0},
        }.items()
    },
    published=BAI_PROTOCOL,
    ours=("VLCS", "DomainNet"),
    differences=(
        "each domain is left out in turn, and the sources hold 20 % out; there one fixed target, a whole domain held "
        "out for validation, and examples of the sources held out as well, by lists that come with its data",
        "selection by the sources' held-out examples, there one of two; --selection lodo is near the other",
        "no linear layer between the pooled features and the head",
        "penalties and domain weights are between the domains of the federation; there between those of one client, so "
        "IRM, CORAL, GroupDRO and Fish were not run with lambda 0",
        "in their code the weight of IRM's penalty is set to 0 and FedProx's norms are not squared; here IRM has "
        "a weight of 1000 after 100 steps, and FedProx the square with a mu of 1",
        "HGP and Hutchinson are not theirs and have their own defaults",
        "not run: MMD (1; not here), Mixup (0.2), FedGMA (0.1), FedSR (0.01, 0.001), SCAFFOLD (learning rate 1e-5), "
        "AFL (0.1, weight decay 5e-5; it is groupdro with form=projection), and Fish (0.1), whose relay has no Adam "
        "of a client",
        "OfficeHome: its configuration is gone from their code; settings of PACS",
    ),
)  # fmt: skip

_ALL = (_DOMAINBED, _DOMAINBED_DEFAULT_RANGES, _GA, _FEDIIR, _BAI)
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}

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

    With ``quick`` they have a small network without pretrained weights, two rounds, and few clients and settings.
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
