"""Diversity shift: leave one domain out, for every domain in turn, on image benchmarks.

    python -m fedhess.simulations.diversity_shift               # IconPACS and RotatedMNIST: 3 h of one core
    python -m fedhess.simulations.diversity_shift --strategy erm,hgp --seeds 0   # a part; results merge
    python -m fedhess.simulations.diversity_shift --domains EmojiStyles --clients 30 --strategy erm,hgp
    python -m fedhess.simulations.diversity_shift --quick
    python -m fedhess.simulations.diversity_shift --preset ga --domains PACS  # a published protocol: docs/protocols.md

Settings and coefficients are those of fedhess/settings/defaults.py. IconPACS and RotatedMNIST are small: they show how
methods compare on a shift of style and of angle with small models. Published values are for other networks and
protocols.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedhess.alignment.loading import BUILT_IN
from fedhess.base.errors import UsageError
from fedhess.cli.command import Command, run_command
from fedhess.domains import BENCHMARKS
from fedhess.results.published import DIVERSITY_SHIFT
from fedhess.settings.assignments import Scalar
from fedhess.simulations.scenarios.comparison import Comparison
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.outputs import chosen_names
from fedhess.simulations.scenarios.presets import PROTOCOLS, comparison_of, find_protocol
from fedhess.simulations.scenarios.presets import configurations as preset_configurations
from fedhess.simulations.scenarios.running import Options, plan, read_seeds, run_scenario, shorten, with_options

NOT_HERE = ("mixstyle", "mixup")  # mixstyle needs a network's stages, mixup needs clients with two domains
STRATEGIES = tuple(name for name in BUILT_IN if name not in NOT_HERE)
SEEDS = (0, 1, 2)
DOMAINS = ("IconPACS", "RotatedMNIST")
WITH_PARTS = ("RotatedMNIST", "Digits")  # benchmarks with the option per_domain
LAMBDAS = "1,0.1,0"  # of the partition with --clients, from clients that are alike to one domain each
OTHERS = ("ColoredMNIST",)  # its targets are fixed; see correlation_shift
QUICK_EXAMPLES, QUICK_ROUNDS, QUICK_ANNEALED = 300, 2, 5

COMPARISON = Comparison(
    name="diversity_shift",
    title="Diversity shift: leave one domain out",
    published=DIVERSITY_SHIFT,
    labels={"sources": "sources (held out)"},
)

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def configurations(
    *,
    domains: Sequence[str] = DOMAINS,
    strategies: Sequence[str] = STRATEGIES,
    seeds: Sequence[int] = SEEDS,
    per_domain: int = 0,
    clients: int = 0,
    heterogeneity: str = LAMBDAS,
) -> list[Configuration]:
    """List the jobs: every benchmark with every strategy and seed, all targets each; with ``clients``, each lambda."""
    part: Mapping[str, Scalar] = {"per_domain": per_domain}
    planned = plan({name: part if name in WITH_PARTS else {} for name in domains}, strategies, seeds)
    try:
        lambdas = [float(each) for each in heterogeneity.split(",")]
    except ValueError:
        raise UsageError(f"--heterogeneity: expected numbers separated by commas, got {heterogeneity!r}") from None
    shares = [{"partition": "lambda", "clients": clients, "heterogeneity": each} for each in lambdas]
    return [replace(job, overrides=share) for job in planned for share in shares] if clients else planned


def choose_domains(given: str, among: Iterable[str] = BENCHMARKS) -> list[str]:
    """Read ``--domains``, names in any case."""
    known = {name.lower(): name for name in among if name not in OTHERS and ":" not in name}
    names = [known.get(name.strip().lower(), name.strip()) for name in given.split(",")]
    return chosen_names("--domains", ",".join(names), list(known.values()))


@cli.command(cls=Command)
@with_options
def diversity_shift(
    options: Options,
    domains: Annotated[
        str | None,
        typer.Option(help=f"Benchmarks, separated by commas. [default: {','.join(DOMAINS)}; PACS with a preset]"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas. [default: 0,1,2; a preset's own]")
    ] = None,
    clients: Annotated[
        int,
        typer.Option(
            help="Share the sources among so many clients, with each --heterogeneity in turn. [default: one each]",
            min=0,
            show_default=False,
        ),
    ] = 0,
    heterogeneity: Annotated[str, typer.Option(help="With --clients: their lambdas, separated by commas.")] = LAMBDAS,
    preset: Annotated[str, typer.Option(help=f"A published protocol: {', '.join(PROTOCOLS)}.")] = "",
    target: Annotated[
        str, typer.Option(help="With a preset: the domains to leave out, as fedhess.simulate takes them.")
    ] = "all",
    selection: Annotated[str, typer.Option(help="With a preset: source, or lodo for cross-validation.")] = "source",
    data_dir: Annotated[
        Path | None, typer.Option(help="With a preset: folder with the data. [default: $FEDHESS_DATA]")
    ] = None,
) -> None:
    """Leave every domain out once; print accuracy on each, beside what is published. --quick takes the first seed."""
    of_presets = {"--target": target != "all", "--selection": selection != "source", "--data-dir": data_dir is not None}
    for option, given in of_presets.items():
        if given and not preset:
            raise UsageError(f"{option} goes with --preset; without one every domain is left out, by source validation")
    if heterogeneity != LAMBDAS and not clients:
        raise UsageError("--heterogeneity goes with --clients, which shares the sources among clients")
    if preset and clients:
        raise UsageError("--clients does not go with --preset, which has its own clients; leave one of them out")
    if preset and options.per_domain:
        raise UsageError("--per-domain does not go with --preset, which takes whole benchmarks; --quick is short")
    protocol = find_protocol(preset) if preset else None
    trials = list(protocol.seeds if protocol else SEEDS) if seeds is None else read_seeds(seeds)
    trials = trials[:1] if options.quick else trials
    if protocol:
        jobs = preset_configurations(
            protocol,
            domains=choose_domains("PACS" if domains is None else domains, protocol.benchmarks),
            strategies=list(protocol.strategies) if options.strategy == "all" else options.strategies(STRATEGIES),
            seeds=trials,
            target=target,
            selection=selection,
            data_dir=data_dir,
            quick=options.quick,
        )
    else:
        jobs = configurations(
            domains=choose_domains(",".join(DOMAINS) if domains is None else domains),
            strategies=options.strategies(STRATEGIES),
            seeds=trials,
            per_domain=options.examples(quick=QUICK_EXAMPLES),
            clients=clients,
            heterogeneity=heterogeneity,
        )
        if options.quick:
            jobs = [shorten(job, rounds=QUICK_ROUNDS, annealed=QUICK_ANNEALED) for job in jobs]
    comparison = COMPARISON
    if protocol:
        comparison = comparison_of(protocol)
    elif clients:
        title = f"{COMPARISON.title}, {clients} clients"
        comparison = replace(COMPARISON, title=title, variety=f"--clients {clients}")
    run_scenario(comparison, jobs, options)


if __name__ == "__main__":
    sys.exit(run_command(cli, "diversity_shift"))
