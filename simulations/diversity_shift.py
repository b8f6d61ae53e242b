"""Diversity shift: leave one domain out, for every domain in turn, on image benchmarks.

    python -m simulations.diversity_shift                        # IconPACS and RotatedMNIST: an hour
    python -m simulations.diversity_shift --strategy erm,hgp --seeds 0   # a part; results merge
    python -m simulations.diversity_shift --quick

Settings and coefficients are those of fedhess/recipes.py. IconPACS and RotatedMNIST are small: they show how methods
compare on a shift of style and of angle, with small models; published values are of other networks and protocols.
"""

from collections.abc import Mapping, Sequence

import typer

from fedhess.config import Scalar
from fedhess.domains import BENCHMARKS
from fedhess.errors import UsageError, did_you_mean
from simulations.comparison import Comparison
from simulations.published import DIVERSITY_SHIFT
from simulations.scenario import (
    Configuration,
    DeviceOption,
    OutOption,
    PerDomainOption,
    QuickOption,
    RunsOption,
    SeedsOption,
    StrategyOption,
    choose,
    hasten,
    plan,
    read_seeds,
    run_command,
    run_scenario,
)

STRATEGIES = (
    *("erm", "hgp", "hutchinson", "irm", "vrex", "coral", "iga", "fish", "fishr"),
    *("fediir", "server_alignment", "groupdro", "fedprox", "fedadam"),
)
DOMAINS = ("IconPACS", "RotatedMNIST")
WITH_PARTS = ("RotatedMNIST",)  # benchmarks with the option per_domain
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
    seeds: Sequence[int] = (0, 1, 2),
    per_domain: int = 0,
) -> list[Configuration]:
    """List the jobs: every benchmark with every strategy and seed, all targets each."""
    part: Mapping[str, Scalar] = {"per_domain": per_domain}
    return plan({name: part if name in WITH_PARTS else {} for name in domains}, strategies, seeds)


def choose_domains(given: str) -> list[str]:
    """Read ``--domains``.

    Raises:
        UsageError: A benchmark is unknown, or fixes its targets.
    """
    known = {name.lower(): name for name in BENCHMARKS if name not in OTHERS}
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name.lower() not in known:
            raise UsageError(
                f"--domains: {name!r} is no benchmark whose domains can each be left out; "
                f"{did_you_mean(name, known.values())}"
            )
    if not names:
        raise UsageError(f"--domains: expected some of {', '.join(known.values())}, got nothing")
    return list(dict.fromkeys(known[name.lower()] for name in names))


@cli.command()
def diversity_shift(
    domains: str = typer.Option(",".join(DOMAINS), help="Benchmarks, separated by commas."),
    strategy: StrategyOption = "all",
    seeds: SeedsOption = "0,1,2",
    per_domain: PerDomainOption = 0,
    quick: QuickOption = False,
    out: OutOption = None,
    runs: RunsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Leave every domain out once; print accuracy on each, beside what is published. --quick takes the first seed."""
    trials = read_seeds(seeds)
    jobs = configurations(
        domains=choose_domains(domains),
        strategies=choose(strategy, STRATEGIES),
        seeds=trials[:1] if quick else trials,
        per_domain=per_domain or (QUICK_EXAMPLES if quick else 0),
    )
    jobs = [hasten(job, rounds=QUICK_ROUNDS, annealed=QUICK_ANNEALED) for job in jobs] if quick else jobs
    if not run_scenario(COMPARISON, jobs, quick=quick, out=out, runs=runs, device=device):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(cli, "diversity_shift")
