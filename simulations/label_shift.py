"""Label shift: ColoredMNIST whose first domain holds the digits below 5, the second the others.

    python -m fedhess.simulations.label_shift                                    # everything: hours
    python -m fedhess.simulations.label_shift --strategy erm,hgp --seeds 0,1     # a part; results merge
    python -m fedhess.simulations.label_shift --quick

The "imbalanced" variant of the Hessian-alignment scripts: all digits < 5 and 1,500 of the others in the first domain,
the remaining digits >= 5 in the second; colour, noise, settings and targets as in ``correlation_shift``. The classes of
every client are printed and recorded.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import typer

from fedhess.cli.command import Command, run_command
from fedhess.domains import open_benchmark
from fedhess.simulations import correlation_shift
from fedhess.simulations.correlation_shift import LABELS, QUICK_EXAMPLES, STRATEGIES, quickened
from fedhess.simulations.scenarios.comparison import Comparison, class_balance
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.outputs import AllowDirtyOption, RenderOption
from fedhess.simulations.scenarios.published_results import LABEL_SHIFT
from fedhess.simulations.scenarios.running import (
    DeviceOption,
    OutOption,
    PerDomainOption,
    QuickOption,
    RunsOption,
    SeedsOption,
    StrategyOption,
    choose,
    read_seeds,
    run_scenario,
)

COMPARISON = Comparison(
    name="label_shift",
    title="Label shift: ColoredMNIST, form irm, imbalanced",
    published={"ColoredMNIST": LABEL_SHIFT},
    labels=LABELS,
    average=False,
    balance=True,
)

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def configurations(
    *, strategies: Sequence[str] = STRATEGIES, seeds: Sequence[int] = (0, 1), per_domain: int = 0
) -> list[Configuration]:
    """List the jobs: those of ``correlation_shift`` with the imbalanced variant."""
    jobs = correlation_shift.configurations(strategies=strategies, seeds=seeds, per_domain=per_domain)
    return [replace(job, options={**job.options, "label_shift": True}) for job in jobs]


@cli.command(cls=Command)
def label_shift(
    strategy: StrategyOption = "all",
    seeds: SeedsOption = "0,1",
    per_domain: PerDomainOption = 0,
    quick: QuickOption = False,
    out: OutOption = None,
    runs: RunsOption = None,
    device: DeviceOption = "auto",
    allow_dirty: AllowDirtyOption = False,
    render_only: RenderOption = False,
) -> None:
    """Train on the imbalanced ColoredMNIST, evaluate on train, target and grey target."""
    examples = per_domain or (QUICK_EXAMPLES if quick else 0)
    jobs = configurations(strategies=choose(strategy, STRATEGIES), seeds=read_seeds(seeds), per_domain=examples)
    jobs = quickened(jobs) if quick else jobs
    if not render_only:
        first = jobs[0]
        benchmark = open_benchmark(first.benchmark, seed=first.seed, options=first.options)
        typer.echo(f"classes of every client, seed {first.seed}:")
        for domain, balance in class_balance(benchmark.identity()).items():
            typer.echo(f"  {domain}: {balance}")
    how = {"allow_dirty": allow_dirty, "render_only": render_only}
    if not run_scenario(COMPARISON, jobs, quick=quick, out=out, runs=runs, device=device, **how):
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(run_command(cli, "label_shift"))
