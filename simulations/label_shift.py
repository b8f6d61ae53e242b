"""Label shift: ColoredMNIST whose first domain holds mostly digits below 5, and the second the others.

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
from fedhess.results.published import LABEL_SHIFT
from fedhess.simulations import correlation_shift
from fedhess.simulations.correlation_shift import LABELS, QUICK_EXAMPLES, STRATEGIES, quickened
from fedhess.simulations.scenarios.comparison import Comparison, class_balance
from fedhess.simulations.scenarios.measurement import Configuration
from fedhess.simulations.scenarios.running import Options, SeedsOption, read_seeds, run_scenario, with_options

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
@with_options
def label_shift(options: Options, seeds: SeedsOption = "0,1") -> None:
    """Train on the imbalanced ColoredMNIST, evaluate on train, target and grey target."""
    examples = options.examples(quick=QUICK_EXAMPLES)
    jobs = configurations(strategies=options.strategies(STRATEGIES), seeds=read_seeds(seeds), per_domain=examples)
    if not options.render_only:
        first = jobs[0]
        benchmark = open_benchmark(first.benchmark, seed=first.seed, options=first.options)
        typer.echo(f"classes of every client, seed {first.seed}:")
        for domain, balance in class_balance(benchmark.identity()).items():
            typer.echo(f"  {domain}: {balance}")
    run_scenario(COMPARISON, quickened(jobs) if options.quick else jobs, options)


if __name__ == "__main__":
    sys.exit(run_command(cli, "label_shift"))
